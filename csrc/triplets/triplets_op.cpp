#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "common/torch_utils.h"
#include "triplets/triplets.h"

namespace molkern {
namespace {

// The arguments that all three operators share, checked.
struct Arguments {
  Tensor x, q, v;
  OptionalTensor w;
  TripletForm form;
  TripletGraph graph;
  bool padded;

  Arguments(const char* op, const Tensor& messages, const Tensor& radial, const Tensor& vectors,
            const OptionalTensor& weight, const Tensor& row_ptr, const Tensor& neighbors,
            const Tensor& t_row_ptr, const Tensor& t_neighbors, const OptionalTensor& t_edges,
            const Tensor& excluded, bool padded, int64_t angle, int64_t moments_from)
      : x(messages), q(radial), v(vectors), w(weight), padded(padded) {
    TORCH_CHECK_VALUE(angle >= 0 && angle <= 2, op, ": angle must be 0, 1 or 2, got ", angle);
    const int64_t edges = neighbors.numel();
    check_real(op, "x", x, 2);
    check_size(op, "x", x, 0, edges);
    check_part(op, "radial", q, 3, edges);
    check_part(op, "vectors", v, 2, edges);
    check_size(op, "vectors", v, 1, 3);
    const int64_t features = x.size(1), orders = q.size(1), channels = q.size(2);
    TORCH_CHECK_VALUE(features >= 1 && orders >= 1 && channels >= 1, op,
                      ": features, orders and channels must be at least 1, got x ", x.sizes(),
                      " and radial ", q.sizes());
    TORCH_CHECK_VALUE(orders <= max_orders, op, ": at most ", max_orders,
                      " orders are supported, got ", orders);
    if (weight) {
      check_real(op, "weight", *w, 2);
      check_like(op, "weight", *w, "x", x);
      check_size(op, "weight", *w, 0, features);
      check_size(op, "weight", *w, 1, channels);
    }
    const int64_t atoms = row_ptr.numel() - 1;
    graph.edges = edges;
    graph.receivers = adjacency(op, from_receivers, row_ptr, neighbors, {}, x, atoms, padded);
    check_size(op, "t_row_ptr", t_row_ptr, 0, row_ptr.numel());
    check_size(op, "t_neighbors", t_neighbors, 0, edges);
    graph.senders = adjacency(op, from_senders, t_row_ptr, t_neighbors, t_edges, x, atoms, padded,
                              &graph.receivers);
    check_excluded(op, excluded);
    form = {static_cast<TripletAngle>(angle), static_cast<int>(orders), static_cast<int>(channels),
            static_cast<int>(features),       weight.has_value(),       moments_from};
  }

  // The reverse of an edge is received by the atom that the edge leaves: kernels look there for it.
  void check_excluded(const char* op, const Tensor& excluded) {
    check_index(op, "excluded", excluded, x);
    check_size(op, "excluded", excluded, 0, graph.edges);
    graph.excluded = excluded.const_data_ptr<int32_t>();
    if (!excluded.is_cpu()) return;
    for (int64_t atom = 0; atom < graph.senders.rows; ++atom) {
      const int32_t* received = graph.receivers.row_ptr + atom;
      for (int64_t k = graph.senders.row_ptr[atom]; k < graph.senders.row_ptr[atom + 1]; ++k) {
        const int64_t edge = graph.senders.edge(k), back = graph.excluded[edge];
        if (back == -1 || (back >= received[0] && back < received[1])) [[likely]]
          continue;
        TORCH_CHECK_VALUE(false, op, ": excluded (the reverse) at ", edge, " is ", back,
                          ", but the edge leaves atom ", atom, ", which receives edges ",
                          received[0], " to ", received[1] - 1, "; pass -1 for no reverse");
      }
    }
  }

  // An upper bound for the polynomials by recursion and the harmonics to be accurate.
  static constexpr int64_t max_orders = 16;

  void check_part(const char* op, const char* name, const Tensor& part, int64_t dims,
                  int64_t edges) const {
    check_real(op, name, part, dims);
    check_like(op, name, part, "x", x);
    check_size(op, name, part, 0, edges);
  }

  std::vector<int64_t> result_sizes() const {
    if (form.weighted) return {graph.edges, form.features};
    return {graph.edges, form.channels, form.features};
  }

  void check_cotangent(const char* op, const Tensor& g) const {
    check_real(op, "g", g, form.weighted ? 2 : 3);
    check_like(op, "g", g, "x", x);
    const std::vector<int64_t> sizes = result_sizes();
    for (size_t dim = 0; dim < sizes.size(); ++dim) check_size(op, "g", g, dim, sizes[dim]);
  }

  // A direction as the tensor it belongs to; zeros where there is none.
  Tensor checked_direction(const char* op, const char* name, const OptionalTensor& direction,
                           const Tensor& like) const {
    if (!direction) return at::zeros_like(like);
    const Tensor& h = *direction;
    check_real(op, name, h, like.dim());
    check_like(op, name, h, "x", x);
    for (int64_t dim = 0; dim < like.dim(); ++dim) check_size(op, name, h, dim, like.size(dim));
    return h;
  }

  // Edges of a padded graph that no row names are not written by the kernels.
  Tensor result(at::IntArrayRef sizes) const {
    const Tensor tensor = empty_result(sizes, x.options());
    if (padded) tensor.zero_();
    return tensor;
  }

  // Of the loops over all pairs of edges that meet, for about the numbers that they read.
  int threads() const {
    const int64_t rows = std::max<int64_t>(graph.receivers.rows, 1);
    return threads_for(graph.edges * (graph.edges / rows + 1) * form.channels);
  }

  template <typename T>
  TripletInputs<T> inputs() const {
    return {x.const_data_ptr<T>(), q.const_data_ptr<T>(), v.const_data_ptr<T>(),
            w ? w->const_data_ptr<T>() : nullptr};
  }
};

// Tensors for the derivatives by x, q, v and w; the last is empty where it is not needed.
struct Results {
  Tensor x, q, v, w, v_out, w_parts;

  Results(const Arguments& in, bool need_weight)
      : x(in.result(in.x.sizes())),
        q(in.result(in.q.sizes())),
        v(in.result(in.v.sizes())),
        v_out(in.result(in.v.sizes())) {
    const bool needed = need_weight && in.w;
    const int64_t features = needed ? in.form.features : 0;
    const int64_t blocks = needed ? triplet_weight_blocks(in.graph.receivers.rows) : 0;
    w = at::zeros({features, in.form.channels}, in.x.options());
    w_parts = empty_result({blocks, features, in.form.channels}, in.x.options());
  }

  template <typename T>
  TripletGradients<T> pointers() const {
    const bool needed = w.numel() > 0;
    return {x.mutable_data_ptr<T>(),     q.mutable_data_ptr<T>(),
            v.mutable_data_ptr<T>(),     needed ? w.mutable_data_ptr<T>() : nullptr,
            v_out.mutable_data_ptr<T>(), needed ? w_parts.mutable_data_ptr<T>() : nullptr};
  }

  std::tuple<Tensor, Tensor, Tensor, Tensor> all() const { return {x, q, v, w}; }
};

Tensor triplet_sum(const Tensor& x, const Tensor& q, const Tensor& v, const OptionalTensor& w,
                   const Tensor& row_ptr, const Tensor& neighbors, const Tensor& t_row_ptr,
                   const Tensor& t_neighbors, const OptionalTensor& t_edges, const Tensor& excluded,
                   bool padded, int64_t angle, int64_t moments_from) {
  const Arguments in("triplet_sum", x, q, v, w, row_ptr, neighbors, t_row_ptr, t_neighbors, t_edges,
                     excluded, padded, angle, moments_from);
  const c10::DeviceGuard guard(x.device());
  const Tensor y = in.result(in.result_sizes());
  with_real(x, [&](auto zero) {
    using T = decltype(zero);
#ifdef MOLKERN_HAS_CUDA_KERNELS
    if (on_cuda(x))
      return triplet_sum_cuda<T>(in.form, in.graph, in.inputs<T>(), y.mutable_data_ptr<T>(),
                                 current_stream(x));
#endif
    with_isa([&](auto isa) {
      triplet_sum_cpu<isa(), T>(in.form, in.graph, in.inputs<T>(), y.mutable_data_ptr<T>(),
                                in.threads());
    });
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> triplet_sum_grad(
    const Tensor& g, const Tensor& x, const Tensor& q, const Tensor& v, const OptionalTensor& w,
    const Tensor& row_ptr, const Tensor& neighbors, const Tensor& t_row_ptr,
    const Tensor& t_neighbors, const OptionalTensor& t_edges, const Tensor& excluded, bool padded,
    int64_t angle, int64_t moments_from, bool need_weight) {
  constexpr auto op = "triplet_sum_grad";
  const Arguments in(op, x, q, v, w, row_ptr, neighbors, t_row_ptr, t_neighbors, t_edges, excluded,
                     padded, angle, moments_from);
  in.check_cotangent(op, g);
  const c10::DeviceGuard guard(x.device());
  const Results out(in, need_weight);
  with_real(x, [&](auto zero) {
    using T = decltype(zero);
    const T* g_data = g.const_data_ptr<T>();
#ifdef MOLKERN_HAS_CUDA_KERNELS
    if (on_cuda(x))
      return triplet_sum_grad_cuda<T>(in.form, in.graph, in.inputs<T>(), g_data, out.pointers<T>(),
                                      current_stream(x));
#endif
    with_isa([&](auto isa) {
      triplet_sum_grad_cpu<isa(), T>(in.form, in.graph, in.inputs<T>(), g_data, out.pointers<T>(),
                                     in.threads());
    });
  });
  return out.all();
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> triplet_sum_hvp(
    const OptionalTensor& hx, const OptionalTensor& hq, const OptionalTensor& hv,
    const OptionalTensor& hw, const Tensor& g, const Tensor& x, const Tensor& q, const Tensor& v,
    const OptionalTensor& w, const Tensor& row_ptr, const Tensor& neighbors,
    const Tensor& t_row_ptr, const Tensor& t_neighbors, const OptionalTensor& t_edges,
    const Tensor& excluded, bool padded, int64_t angle, int64_t moments_from, bool need_weight) {
  constexpr auto op = "triplet_sum_hvp";
  const Arguments in(op, x, q, v, w, row_ptr, neighbors, t_row_ptr, t_neighbors, t_edges, excluded,
                     padded, angle, moments_from);
  in.check_cotangent(op, g);
  const Tensor direction_x = in.checked_direction(op, "hx", hx, in.x);
  const Tensor direction_q = in.checked_direction(op, "hq", hq, in.q);
  const Tensor direction_v = in.checked_direction(op, "hv", hv, in.v);
  OptionalTensor direction_w;
  if (in.w) direction_w = in.checked_direction(op, "hw", hw, *in.w);
  const c10::DeviceGuard guard(x.device());
  const Tensor tg = in.result(in.result_sizes());
  const Results out(in, need_weight);
  with_real(x, [&](auto zero) {
    using T = decltype(zero);
    const TripletInputs<T> direction{
        direction_x.const_data_ptr<T>(), direction_q.const_data_ptr<T>(),
        direction_v.const_data_ptr<T>(), direction_w ? direction_w->const_data_ptr<T>() : nullptr};
    const T* g_data = g.const_data_ptr<T>();
    T* tg_data = tg.mutable_data_ptr<T>();
#ifdef MOLKERN_HAS_CUDA_KERNELS
    if (on_cuda(x))
      return triplet_sum_hvp_cuda<T>(in.form, in.graph, in.inputs<T>(), direction, g_data, tg_data,
                                     out.pointers<T>(), current_stream(x));
#endif
    with_isa([&](auto isa) {
      triplet_sum_hvp_cpu<isa(), T>(in.form, in.graph, in.inputs<T>(), direction, g_data, tg_data,
                                    out.pointers<T>(), in.threads());
    });
  });
  return {tg, out.x, out.q, out.v, out.w};
}

// The graph from both sides and what follows it, in every schema.
#define MOLKERN_TRIPLET_ARGUMENTS                                                                 \
  "Tensor x, Tensor q, Tensor v, Tensor? w, Tensor row_ptr, Tensor neighbors, Tensor t_row_ptr, " \
  "Tensor t_neighbors, Tensor? t_edges, Tensor excluded, bool padded, int angle, "                \
  "int moments_from"

}  // namespace

TORCH_LIBRARY_FRAGMENT(molkern, library) {
  library.def("triplet_sum(" MOLKERN_TRIPLET_ARGUMENTS ") -> Tensor");
  library.def("triplet_sum_grad(Tensor g, " MOLKERN_TRIPLET_ARGUMENTS
              ", bool need_weight) -> (Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "triplet_sum_hvp(Tensor? hx, Tensor? hq, Tensor? hv, Tensor? hw, Tensor "
      "g, " MOLKERN_TRIPLET_ARGUMENTS
      ", bool need_weight) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(molkern, CPU, library) {
  library.impl("triplet_sum", any_layout<triplet_sum>);
  library.impl("triplet_sum_grad", any_layout<triplet_sum_grad>);
  library.impl("triplet_sum_hvp", any_layout<triplet_sum_hvp>);
}

#ifdef MOLKERN_WITH_CUDA
TORCH_LIBRARY_IMPL(molkern, CUDA, library) {
  library.impl("triplet_sum", any_layout<triplet_sum>);
  library.impl("triplet_sum_grad", any_layout<triplet_sum_grad>);
  library.impl("triplet_sum_hvp", any_layout<triplet_sum_hvp>);
}
#endif

}  // namespace molkern
