#include <torch/library.h>

#include "common/torch_utils.h"
#include "geometry/geometry.h"

namespace molkern {
namespace {

Images images_of(const char* op, const OptionalTensor& shifts, const OptionalTensor& system,
                 int64_t systems, bool reads_cell, int64_t edges, int64_t atoms,
                 const Tensor& like) {
  if (shifts) {
    TORCH_CHECK_TYPE(shifts->scalar_type() == at::kInt, op, ": shifts must be int32, got ",
                     shifts->scalar_type());
    TORCH_CHECK_VALUE(shifts->dim() == 2 && shifts->size(0) == edges && shifts->size(1) == 3, op,
                      ": shifts must have shape [", edges, ", 3], got ", shifts->sizes());
    check_device(op, "shifts", *shifts, like);
  }
  if (system) {
    check_index(op, "system", *system, like);
    check_size(op, "system", *system, 0, atoms);
  }
  if (shifts && reads_cell && system)
    check_values(op, "system", *system, atoms, systems, "cells");
  else if (shifts && reads_cell)
    TORCH_CHECK_VALUE(systems >= 1 || atoms == 0, op, ": there is no cell for the shifts");
  return {shifts ? shifts->const_data_ptr<int32_t>() : nullptr,
          system ? system->const_data_ptr<int32_t>() : nullptr, systems};
}

// edge_vectors, [E, 3], or edge_distances, [E].
template <bool lengths>
Tensor edge_geometry(const Tensor& positions, const OptionalTensor& cell,
                     const OptionalTensor& shifts, const OptionalTensor& system,
                     const Tensor& row_ptr, const Tensor& neighbors, const OptionalTensor& edges,
                     const Tensor&, const Tensor&, const OptionalTensor&, bool padded) {
  constexpr auto op = lengths ? "edge_distances" : "edge_vectors";
  check_real(op, "positions", positions, 2);
  check_size(op, "positions", positions, 1, 3);
  if (cell) {
    check_real(op, "cell", *cell, 3);
    check_like(op, "cell", *cell, "positions", positions);
    check_size(op, "cell", *cell, 1, 3);
    check_size(op, "cell", *cell, 2, 3);
  }
  const Adjacency graph = adjacency(op, from_receivers, row_ptr, neighbors, edges, positions,
                                    positions.size(0), padded);
  check_size(op, "positions", positions, 0, graph.rows);
  const int64_t count = neighbors.numel();
  const int64_t systems = cell ? cell->size(0) : 0;
  const Images images =
      images_of(op, shifts, system, systems, cell.has_value(), count, graph.rows, positions);
  const c10::DeviceGuard guard(positions.device());
  const Tensor result = lengths ? empty_result({count}, positions.options())
                                : empty_result({count, 3}, positions.options());
  if (padded) result.zero_();
  with_real(positions, [&](auto zero) {
    using T = decltype(zero);
    const T* x = positions.const_data_ptr<T>();
    const T* c = cell ? cell->const_data_ptr<T>() : nullptr;
    T* out = result.mutable_data_ptr<T>();
#ifdef MOLKERN_HAS_CUDA_KERNELS
    if (on_cuda(positions)) {
      constexpr auto kernel = lengths ? edge_distances_cuda<T> : edge_vectors_cuda<T>;
      return kernel(graph, images, x, c, out, current_stream(positions));
    }
#endif
    with_isa([&](auto isa) {
      constexpr auto kernel = lengths ? edge_distances_cpu<isa(), T> : edge_vectors_cpu<isa(), T>;
      kernel(graph, images, x, c, out, threads_for(6 * count));
    });
  });
  return result;
}

// The cell gradient is empty where it is not needed.
std::tuple<Tensor, Tensor> edge_vectors_adjoint(const Tensor& grad, const OptionalTensor& shifts,
                                                const OptionalTensor& system, int64_t systems,
                                                bool need_cell, const Tensor& row_ptr,
                                                const Tensor& neighbors,
                                                const OptionalTensor& edges,
                                                const Tensor& t_row_ptr, const Tensor& t_neighbors,
                                                const OptionalTensor& t_edges, bool padded) {
  constexpr auto op = "edge_vectors_adjoint";
  check_real(op, "grad", grad, 2);
  check_size(op, "grad", grad, 0, neighbors.numel());
  check_size(op, "grad", grad, 1, 3);
  const Adjacency receivers =
      adjacency(op, from_receivers, row_ptr, neighbors, edges, grad, row_ptr.numel() - 1, padded);
  const Adjacency senders = adjacency(op, from_senders, t_row_ptr, t_neighbors, t_edges, grad,
                                      receivers.rows, padded, &receivers);
  check_size(op, "t_row_ptr", t_row_ptr, 0, row_ptr.numel());
  check_size(op, "t_neighbors", t_neighbors, 0, neighbors.numel());
  const Images images =
      images_of(op, shifts, system, systems, need_cell, neighbors.numel(), receivers.rows, grad);
  const c10::DeviceGuard guard(grad.device());
  const Tensor positions = empty_result({receivers.rows, 3}, grad.options());
  const Tensor cell = empty_result({need_cell ? systems : 0, 3, 3}, grad.options());
  with_real(grad, [&](auto zero) {
    using T = decltype(zero);
    const T* g = grad.const_data_ptr<T>();
    T* gx = positions.mutable_data_ptr<T>();
    T* gc = need_cell ? cell.mutable_data_ptr<T>() : nullptr;
#ifdef MOLKERN_HAS_CUDA_KERNELS
    if (on_cuda(grad)) {
      const int64_t numbers = need_cell ? edge_vectors_adjoint_workspace(receivers.rows) : 0;
      const Tensor workspace = empty_result({numbers}, grad.options());
      return edge_vectors_adjoint_cuda<T>(receivers, senders, images, g, gx, gc,
                                          workspace.mutable_data_ptr<T>(), current_stream(grad));
    }
#endif
    with_isa([&](auto isa) {
      edge_vectors_adjoint_cpu<isa(), T>(receivers, senders, images, g, gx, gc,
                                         threads_for(2 * grad.numel()));
    });
  });
  return {positions, cell};
}

void check_vectors(const char* op, const Tensor& vectors) {
  check_real(op, "vectors", vectors, 2);
  check_size(op, "vectors", vectors, 1, 3);
}

Tensor edge_norm(const Tensor& vectors) {
  check_vectors("edge_norm", vectors);
  const c10::DeviceGuard guard(vectors.device());
  const int64_t edges = vectors.size(0);
  const Tensor distances = empty_result({edges}, vectors.options());
  with_real(vectors, [&](auto zero) {
    using T = decltype(zero);
    const T* v = vectors.const_data_ptr<T>();
    T* d = distances.mutable_data_ptr<T>();
#ifdef MOLKERN_HAS_CUDA_KERNELS
    if (on_cuda(vectors)) return edge_norm_cuda<T>(v, d, edges, current_stream(vectors));
#endif
    with_isa([&](auto isa) { edge_norm_cpu<isa(), T>(v, d, edges, threads_for(4 * edges)); });
  });
  return distances;
}

Tensor edge_norm_grad(const Tensor& grad, const Tensor& vectors) {
  constexpr auto op = "edge_norm_grad";
  check_vectors(op, vectors);
  check_real(op, "grad", grad, 1);
  check_like(op, "grad", grad, "vectors", vectors);
  check_size(op, "grad", grad, 0, vectors.size(0));
  const c10::DeviceGuard guard(vectors.device());
  const int64_t edges = vectors.size(0);
  const Tensor result = empty_result(vectors.sizes(), vectors.options());
  with_real(vectors, [&](auto zero) {
    using T = decltype(zero);
    const T *g = grad.const_data_ptr<T>(), *v = vectors.const_data_ptr<T>();
    T* gv = result.mutable_data_ptr<T>();
#ifdef MOLKERN_HAS_CUDA_KERNELS
    if (on_cuda(vectors)) return edge_norm_grad_cuda<T>(g, v, gv, edges, current_stream(vectors));
#endif
    with_isa(
        [&](auto isa) { edge_norm_grad_cpu<isa(), T>(g, v, gv, edges, threads_for(4 * edges)); });
  });
  return result;
}

std::tuple<Tensor, Tensor> edge_norm_hvp(const Tensor& h, const Tensor& grad,
                                         const Tensor& vectors) {
  constexpr auto op = "edge_norm_hvp";
  check_vectors(op, vectors);
  check_vectors(op, h);
  check_real(op, "grad", grad, 1);
  check_like(op, "h", h, "vectors", vectors);
  check_like(op, "grad", grad, "vectors", vectors);
  check_size(op, "h", h, 0, vectors.size(0));
  check_size(op, "grad", grad, 0, vectors.size(0));
  const c10::DeviceGuard guard(vectors.device());
  const int64_t edges = vectors.size(0);
  const Tensor grad_grad = empty_result(grad.sizes(), grad.options());
  const Tensor grad_vectors = empty_result(vectors.sizes(), vectors.options());
  with_real(vectors, [&](auto zero) {
    using T = decltype(zero);
    const T *hv = h.const_data_ptr<T>(), *g = grad.const_data_ptr<T>();
    const T* v = vectors.const_data_ptr<T>();
    T *gg = grad_grad.mutable_data_ptr<T>(), *gv = grad_vectors.mutable_data_ptr<T>();
#ifdef MOLKERN_HAS_CUDA_KERNELS
    if (on_cuda(vectors))
      return edge_norm_hvp_cuda<T>(hv, g, v, gg, gv, edges, current_stream(vectors));
#endif
    with_isa([&](auto isa) {
      edge_norm_hvp_cpu<isa(), T>(hv, g, v, gg, gv, edges, threads_for(4 * edges));
    });
  });
  return {grad_grad, grad_vectors};
}

template <typename Library>
void register_kernels(Library& library) {
  library.impl("edge_vectors", any_layout<edge_geometry<false>>);
  library.impl("edge_distances", any_layout<edge_geometry<true>>);
  library.impl("edge_vectors_adjoint", any_layout<edge_vectors_adjoint>);
  library.impl("edge_norm", any_layout<edge_norm>);
  library.impl("edge_norm_grad", any_layout<edge_norm_grad>);
  library.impl("edge_norm_hvp", any_layout<edge_norm_hvp>);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(molkern, library) {
  library.def(
      "edge_vectors(Tensor positions, Tensor? cell, Tensor? shifts, Tensor? system, "
      "Tensor row_ptr, Tensor neighbors, Tensor? edges, "
      "Tensor t_row_ptr, Tensor t_neighbors, Tensor? t_edges, bool padded) -> Tensor");
  library.def(
      "edge_distances(Tensor positions, Tensor? cell, Tensor? shifts, Tensor? system, "
      "Tensor row_ptr, Tensor neighbors, Tensor? edges, "
      "Tensor t_row_ptr, Tensor t_neighbors, Tensor? t_edges, bool padded) -> Tensor");
  library.def(
      "edge_vectors_adjoint(Tensor grad, Tensor? shifts, Tensor? system, int systems, "
      "bool need_cell, Tensor row_ptr, Tensor neighbors, Tensor? edges, "
      "Tensor t_row_ptr, Tensor t_neighbors, Tensor? t_edges, bool padded) -> (Tensor, Tensor)");
  library.def("edge_norm(Tensor vectors) -> Tensor");
  library.def("edge_norm_grad(Tensor grad, Tensor vectors) -> Tensor");
  library.def("edge_norm_hvp(Tensor h, Tensor grad, Tensor vectors) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(molkern, CPU, library) { register_kernels(library); }

#ifdef MOLKERN_WITH_CUDA
TORCH_LIBRARY_IMPL(molkern, CUDA, library) { register_kernels(library); }
#endif

}  // namespace molkern
