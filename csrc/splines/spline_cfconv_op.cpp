#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "splines/spline_arguments.h"

namespace molkern {

// Blocks of intervals with the rows that they reach.
int64_t spline_table_workspace(int64_t intervals, int degree, int64_t features) {
  return (intervals + spline_block - 1) / spline_block * (spline_block + degree) * features;
}

namespace {

using Arguments = SplineArguments;

// Threads worth their start for the loops over edges.
int threads_of(const Arguments& in) { return threads_for(in.distances.numel() * in.x.size(1) * 2); }

// spline_bins on a GPU by torch's own operators, none of which waits for the device. Intervals are
// those of spline_interval, operation by operation.
Tensor sorted_bins(const Tensor& distances, const Tensor& senders, const Tensor& receivers,
                   double start, double stop, int64_t intervals, bool zero_beyond) {
  const at::AutoDispatchBelowADInplaceOrView guard;  // nothing here has a derivative
  const double per_length = static_cast<double>(intervals) / (stop - start);
  const Tensor t = distances.sub(start).mul_(per_length).nan_to_num_(0.0).clamp_(0, intervals - 1);
  Tensor none = receivers.lt(0);
  if (zero_beyond) none.logical_or_(distances.ge(stop));
  // Sorting costs by the byte.
  const auto type = intervals < INT16_MAX ? at::kShort : at::kInt;
  const Tensor keys = t.to(type).masked_fill_(none, intervals);
  const auto [sorted, order] = at::sort(keys, /*stable=*/true, /*dim=*/0, /*descending=*/false);
  const Tensor each = at::arange(intervals + 1, keys.options());
  return at::cat({at::searchsorted(sorted, each, /*out_int32=*/true), order.to(at::kInt),
                  senders.index_select(0, order), receivers.index_select(0, order)});
}

// The edges by interval, see SplineArguments; those that are zero or padding in none. Not
// differentiable.
Tensor spline_bins(const Tensor& distances, const Tensor& senders, const Tensor& receivers,
                   double start, double stop, int64_t intervals, bool zero_beyond) {
  constexpr auto op = "spline_bins";
  check_real(op, "distances", distances, 1);
  check_index(op, "senders", senders, distances);
  check_index(op, "receivers", receivers, distances);
  const int64_t edges = distances.numel();
  check_size(op, "senders", senders, 0, edges);
  check_size(op, "receivers", receivers, 0, edges);
  check_knots(op, start, stop, intervals);
  const c10::DeviceGuard guard(distances.device());
  if (on_cuda(distances))
    return sorted_bins(distances, senders, receivers, start, stop, intervals, zero_beyond);
  const Tensor bins = at::zeros({intervals + 1 + 3 * edges}, senders.options());
  int32_t* ptr = bins.mutable_data_ptr<int32_t>();
  int32_t* first = ptr + intervals + 1;
  const int32_t *from = senders.const_data_ptr<int32_t>(),
                *to = receivers.const_data_ptr<int32_t>();
  with_real(distances, [&](auto zero) {
    using T = decltype(zero);
    const SplineGrid<T> grid{T(start), T(stop), T(static_cast<double>(intervals) / (stop - start)),
                             static_cast<int32_t>(intervals), zero_beyond};
    const T* d = distances.const_data_ptr<T>();
    std::vector<int32_t> interval(edges);
    for (int64_t e = 0; e < edges; ++e) {
      interval[e] = to[e] < 0 || spline_is_zero(grid, d[e]) ? -1 : spline_interval(grid, d[e]);
      if (interval[e] >= 0) ++ptr[interval[e] + 1];
    }
    for (int64_t m = 0; m < intervals; ++m) ptr[m + 1] += ptr[m];
    std::vector<int32_t> next(ptr, ptr + intervals);
    for (int64_t e = 0; e < edges; ++e) {
      if (interval[e] < 0) continue;
      const int64_t place = next[interval[e]]++;
      first[place] = static_cast<int32_t>(e);
      first[edges + place] = from[e];
      first[2 * edges + place] = to[e];
    }
  });
  return bins;
}

// x [atoms, F], table [intervals + degree, F], distances [E] -> [rows, F]. Only the backward
// formula reads the edges by interval.
Tensor spline_cfconv(const Tensor& x, const Tensor& table, const Tensor& distances,
                     const Tensor& row_ptr, const Tensor& neighbors, const OptionalTensor& edges,
                     const Tensor& t_row_ptr, const Tensor& t_neighbors,
                     const OptionalTensor& t_edges, const OptionalTensor&, double start,
                     double stop, int64_t degree, bool zero_beyond, bool padded) {
  constexpr auto op = "spline_cfconv";
  const Arguments in(op, x, table, distances, row_ptr, neighbors, edges, t_row_ptr, t_neighbors,
                     t_edges, start, stop, degree, zero_beyond, padded);
  const c10::DeviceGuard guard(x.device());
  const Tensor y = empty_result({in.receivers.rows, x.size(1)}, x.options());
  with_real(x, [&](auto zero) {
    using T = decltype(zero);
    const SplineFilters<T> filters = in.filters<T>();
    const T* x_data = x.const_data_ptr<T>();
    T* y_data = y.mutable_data_ptr<T>();
#ifdef MOLKERN_HAS_CUDA_KERNELS
    if (on_cuda(x))
      return spline_value_cuda<T>(in.receivers, filters, x_data, nullptr, y_data,
                                  current_stream(x));
#endif
    with_isa([&](auto isa) {
      spline_value_cpu<isa(), T>(in.receivers, in.reverse, filters, x_data, nullptr, y_data,
                                 threads_of(in));
    });
  });
  return y;
}

int64_t workspace_size(const Arguments& in) {
#ifdef MOLKERN_HAS_CUDA_KERNELS
  if (on_cuda(in.x))
    return spline_table_workspace_cuda(in.distances.numel(), in.intervals, in.degree, in.x.size(1));
#endif
  return spline_table_workspace(in.intervals, in.degree, in.x.size(1));
}

// Both gradient operators; without a direction the gradient, with one the product's gx, gd and gC.
template <typename T>
void run_grad(const Arguments& in, const Tensor& g, const SplineDirection<T>* direction,
              const OptionalTensor& added, const SplineBins* bins, const Tensor& gx,
              const Tensor& gd, const Tensor& gc) {
  const SplineFilters<T> filters = in.filters<T>();
  const T *x_data = in.x.const_data_ptr<T>(), *g_data = g.const_data_ptr<T>();
  T *gx_data = gx.mutable_data_ptr<T>(), *gd_data = gd.mutable_data_ptr<T>();
  Tensor workspace;
  if (bins) workspace = empty_result({workspace_size(in)}, in.x.options());
  T* gc_data = bins ? gc.mutable_data_ptr<T>() : nullptr;
  T* space = bins ? workspace.mutable_data_ptr<T>() : nullptr;
#ifdef MOLKERN_HAS_CUDA_KERNELS
  if (on_cuda(in.x)) {
    const Stream stream = current_stream(in.x);
    spline_grad_cuda<T>(in.senders, filters, x_data, g_data, direction, data<T>(added), gx_data,
                        gd_data, stream);
    if (bins)
      spline_table_grad_cuda<T>(*bins, filters, x_data, g_data, direction, gc_data, space, stream);
    return;
  }
#endif
  with_isa([&](auto isa) {
    const int threads = threads_of(in);
    spline_grad_cpu<isa(), T>(in.senders, in.reverse, filters, x_data, g_data, direction,
                              data<T>(added), gx_data, gd_data, threads);
    if (bins)
      spline_table_grad_cpu<isa(), T>(*bins, filters, x_data, g_data, direction, gc_data, space,
                                      threads);
  });
}

// g [rows, F] -> gx [atoms, F], gd [E] on top of `added`, gC as the table or [0, F].
std::tuple<Tensor, Tensor, Tensor> spline_cfconv_grad(
    const Tensor& g, const Tensor& x, const Tensor& table, const Tensor& distances,
    const OptionalTensor& added, const Tensor& row_ptr, const Tensor& neighbors,
    const OptionalTensor& edges, const Tensor& t_row_ptr, const Tensor& t_neighbors,
    const OptionalTensor& t_edges, const OptionalTensor& bins_in, double start, double stop,
    int64_t degree, bool zero_beyond, bool padded, bool need_table) {
  constexpr auto op = "spline_cfconv_grad";
  const Arguments in(op, x, table, distances, row_ptr, neighbors, edges, t_row_ptr, t_neighbors,
                     t_edges, start, stop, degree, zero_beyond, padded);
  in.check_cotangent(op, g, x.size(1));
  in.check_part(op, "added", added, distances);
  const c10::DeviceGuard guard(x.device());
  const Tensor gx = empty_result({in.senders.rows, x.size(1)}, x.options());
  const Tensor gd = empty_result({distances.numel()}, x.options());
  const Tensor gc = empty_result({need_table ? table.size(0) : 0, x.size(1)}, x.options());
  if (padded) gd.zero_();
  SplineBins bins{};
  if (need_table) bins = in.bins(op, bins_in);
  with_real(x, [&](auto zero) {
    using T = decltype(zero);
    run_grad<T>(in, g, nullptr, added, need_table ? &bins : nullptr, gx, gd, gc);
  });
  return {gx, gd, gc};
}

// hx [atoms, F], hd [E], hC as the table, each may be absent -> gg [rows, F], gx, gd, gC.
std::tuple<Tensor, Tensor, Tensor, Tensor> spline_cfconv_hvp(
    const OptionalTensor& hx, const OptionalTensor& hd, const OptionalTensor& hc, const Tensor& g,
    const Tensor& x, const Tensor& table, const Tensor& distances, const Tensor& row_ptr,
    const Tensor& neighbors, const OptionalTensor& edges, const Tensor& t_row_ptr,
    const Tensor& t_neighbors, const OptionalTensor& t_edges, const OptionalTensor& bins_in,
    double start, double stop, int64_t degree, bool zero_beyond, bool padded, bool need_table) {
  constexpr auto op = "spline_cfconv_hvp";
  const Arguments in(op, x, table, distances, row_ptr, neighbors, edges, t_row_ptr, t_neighbors,
                     t_edges, start, stop, degree, zero_beyond, padded);
  in.check_cotangent(op, g, x.size(1));
  in.check_part(op, "hx", hx, x);
  in.check_part(op, "hd", hd, distances);
  in.check_part(op, "hc", hc, table);
  const c10::DeviceGuard guard(x.device());
  const Tensor gg = empty_result({in.receivers.rows, x.size(1)}, x.options());
  const Tensor gx = empty_result({in.senders.rows, x.size(1)}, x.options());
  const Tensor gd = empty_result({distances.numel()}, x.options());
  const Tensor gc = empty_result({need_table ? table.size(0) : 0, x.size(1)}, x.options());
  if (padded) gd.zero_();
  SplineBins bins{};
  if (need_table) bins = in.bins(op, bins_in);
  with_real(x, [&](auto zero) {
    using T = decltype(zero);
    const SplineDirection<T> direction{data<T>(hx), data<T>(hd), data<T>(hc)};
    run_grad<T>(in, g, &direction, {}, need_table ? &bins : nullptr, gx, gd, gc);
    const SplineFilters<T> filters = in.filters<T>();
    const T* x_data = x.const_data_ptr<T>();
    T* gg_data = gg.mutable_data_ptr<T>();
#ifdef MOLKERN_HAS_CUDA_KERNELS
    if (on_cuda(x))
      return spline_value_cuda<T>(in.receivers, filters, x_data, &direction, gg_data,
                                  current_stream(x));
#endif
    with_isa([&](auto isa) {
      spline_value_cpu<isa(), T>(in.receivers, in.reverse, filters, x_data, &direction, gg_data,
                                 threads_of(in));
    });
  });
  return {gg, gx, gd, gc};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(molkern, library) {
  library.def(
      "spline_bins(Tensor distances, Tensor senders, Tensor receivers, float start, float stop, "
      "int intervals, bool zero_beyond) -> Tensor");
  library.def(
      "spline_cfconv(Tensor x, Tensor table, Tensor distances, Tensor row_ptr, Tensor neighbors, "
      "Tensor? edges, Tensor t_row_ptr, Tensor t_neighbors, Tensor? t_edges, Tensor? bins, "
      "float start, float stop, int degree, bool zero_beyond, bool padded) -> Tensor");
  library.def(
      "spline_cfconv_grad(Tensor g, Tensor x, Tensor table, Tensor distances, Tensor? added, "
      "Tensor row_ptr, Tensor neighbors, Tensor? edges, Tensor t_row_ptr, Tensor t_neighbors, "
      "Tensor? t_edges, Tensor? bins, float start, float stop, int degree, bool zero_beyond, "
      "bool padded, bool need_table) -> (Tensor, Tensor, Tensor)");
  library.def(
      "spline_cfconv_hvp(Tensor? hx, Tensor? hd, Tensor? hc, Tensor g, Tensor x, Tensor table, "
      "Tensor distances, Tensor row_ptr, Tensor neighbors, Tensor? edges, Tensor t_row_ptr, "
      "Tensor t_neighbors, Tensor? t_edges, Tensor? bins, float start, float stop, int degree, "
      "bool zero_beyond, bool padded, bool need_table) -> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(molkern, CPU, library) {
  library.impl("spline_bins", any_layout<spline_bins>);
  library.impl("spline_cfconv", any_layout<spline_cfconv>);
  library.impl("spline_cfconv_grad", any_layout<spline_cfconv_grad>);
  library.impl("spline_cfconv_hvp", any_layout<spline_cfconv_hvp>);
}

#ifdef MOLKERN_WITH_CUDA
TORCH_LIBRARY_IMPL(molkern, CUDA, library) {
  library.impl("spline_bins", any_layout<spline_bins>);
  library.impl("spline_cfconv", any_layout<spline_cfconv>);
  library.impl("spline_cfconv_grad", any_layout<spline_cfconv_grad>);
  library.impl("spline_cfconv_hvp", any_layout<spline_cfconv_hvp>);
}
#endif

}  // namespace molkern
