#include <torch/library.h>

#include "cfconv/cfconv.h"
#include "common/torch_utils.h"

namespace molkern {
namespace {

// x [atoms, F], filters [E, F] -> [rows, F]. Only the backward formula reads the transposed
// adjacency that follows the first.
Tensor cfconv(const Tensor& x, const Tensor& filters, const Tensor& row_ptr,
              const Tensor& neighbors, const OptionalTensor& edges, const Tensor& t_row_ptr,
              const Tensor&, const OptionalTensor&, bool padded) {
  constexpr auto op = "cfconv";
  check_real(op, "x", x, 2);
  check_real(op, "filters", filters, 2);
  check_like(op, "filters", filters, "x", x);
  check_size(op, "x", x, 0, t_row_ptr.numel() - 1);
  check_size(op, "filters", filters, 0, neighbors.numel());
  check_size(op, "filters", filters, 1, x.size(1));
  const Adjacency graph =
      adjacency(op, from_receivers, row_ptr, neighbors, edges, x, x.size(0), padded);
  const c10::DeviceGuard guard(x.device());
  const Tensor y = empty_result({graph.rows, x.size(1)}, x.options());
  with_real(x, [&](auto zero) {
    using T = decltype(zero);
    const T *x_data = x.const_data_ptr<T>(), *w_data = filters.const_data_ptr<T>();
    T* y_data = y.mutable_data_ptr<T>();
#ifdef MOLKERN_HAS_CUDA_KERNELS
    if (on_cuda(x))
      return convolve_cuda<T>(graph, x_data, w_data, y_data, x.size(1), current_stream(x));
#endif
    with_isa([&](auto isa) {
      convolve_cpu<isa(), T>(graph, x_data, w_data, y_data, x.size(1),
                             threads_for(filters.numel()));
    });
  });
  return y;
}

// a [rows, F], b [atoms, F] -> [E, F]; entries of a padded graph that belong to no row are zero.
Tensor edge_product(const Tensor& a, const Tensor& b, const Tensor& row_ptr,
                    const Tensor& neighbors, const OptionalTensor& edges, const Tensor& t_row_ptr,
                    const Tensor&, const OptionalTensor&, bool padded) {
  constexpr auto op = "edge_product";
  check_real(op, "a", a, 2);
  check_real(op, "b", b, 2);
  check_like(op, "b", b, "a", a);
  check_size(op, "b", b, 1, a.size(1));
  const Adjacency graph =
      adjacency(op, from_receivers, row_ptr, neighbors, edges, a, b.size(0), padded);
  check_size(op, "a", a, 0, graph.rows);
  check_size(op, "b", b, 0, t_row_ptr.numel() - 1);
  const c10::DeviceGuard guard(a.device());
  const Tensor p = empty_result({neighbors.numel(), a.size(1)}, a.options());
  if (padded) p.zero_();
  with_real(a, [&](auto zero) {
    using T = decltype(zero);
    const T *a_data = a.const_data_ptr<T>(), *b_data = b.const_data_ptr<T>();
    T* p_data = p.mutable_data_ptr<T>();
#ifdef MOLKERN_HAS_CUDA_KERNELS
    if (on_cuda(a))
      return edge_product_cuda<T>(graph, a_data, b_data, p_data, a.size(1), current_stream(a));
#endif
    with_isa([&](auto isa) {
      edge_product_cpu<isa(), T>(graph, a_data, b_data, p_data, a.size(1), threads_for(p.numel()));
    });
  });
  return p;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(molkern, library) {
  library.def(
      "cfconv(Tensor x, Tensor filters, Tensor row_ptr, Tensor neighbors, Tensor? edges, "
      "Tensor t_row_ptr, Tensor t_neighbors, Tensor? t_edges, bool padded) -> Tensor");
  library.def(
      "edge_product(Tensor a, Tensor b, Tensor row_ptr, Tensor neighbors, Tensor? edges, "
      "Tensor t_row_ptr, Tensor t_neighbors, Tensor? t_edges, bool padded) -> Tensor");
}

TORCH_LIBRARY_IMPL(molkern, CPU, library) {
  library.impl("cfconv", any_layout<cfconv>);
  library.impl("edge_product", any_layout<edge_product>);
}

#ifdef MOLKERN_WITH_CUDA
TORCH_LIBRARY_IMPL(molkern, CUDA, library) {
  library.impl("cfconv", any_layout<cfconv>);
  library.impl("edge_product", any_layout<edge_product>);
}
#endif

}  // namespace molkern
