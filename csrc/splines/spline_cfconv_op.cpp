#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "common/torch_utils.h"
#include "splines/spline_cfconv.h"

namespace molkern {

// Blocks of 32 intervals with the rows that they reach.
int64_t spline_table_workspace(int64_t intervals, int degree, int64_t features) {
  return (intervals + 31) / 32 * (32 + degree) * features;
}

namespace {

void check_knots(const char* op, double start, double stop, int64_t intervals) {
  TORCH_CHECK_VALUE(std::isfinite(start) && std::isfinite(stop) && start < stop, op,
                    ": start and stop must be finite and ascend, got ", start, " and ", stop);
  TORCH_CHECK_VALUE(intervals >= 1 && intervals < (int64_t{1} << 24), op,
                    ": there must be from 1 to ", (1 << 24) - 1, " intervals, got ", intervals,
                    " (of a table: its rows less the degree)");
}

// What the operators have in common, checked. Filters are not kept contiguous here: `table` and
// `distances` must be.
struct Arguments {
  const Tensor &x, &table, &distances;
  Adjacency receivers, senders;
  const int32_t* reverse;  // of a symmetric graph, whose rows are the same from both sides
  double start, stop;
  int degree;
  bool zero_beyond;
  int64_t intervals;

  Arguments(const char* op, const Tensor& x_in, const Tensor& table_in, const Tensor& distances_in,
            const Tensor& row_ptr, const Tensor& neighbors, const OptionalTensor& edges,
            const Tensor& t_row_ptr, const Tensor& t_neighbors, const OptionalTensor& t_edges,
            double start_in, double stop_in, int64_t degree_in, bool zero_in)
      : x(x_in),
        table(table_in),
        distances(distances_in),
        start(start_in),
        stop(stop_in),
        degree(static_cast<int>(degree_in)),
        zero_beyond(zero_in) {
    TORCH_CHECK_VALUE(degree_in == 3 || degree_in == 5, op, ": degree must be 3 or 5, got ",
                      degree_in);
    check_real(op, "x", x, 2);
    check_real(op, "table", table, 2);
    check_like(op, "table", table, "x", x);
    check_size(op, "table", table, 1, x.size(1));
    intervals = table.size(0) - degree;
    check_knots(op, start, stop, intervals);
    check_real(op, "distances", distances, 1);
    check_like(op, "distances", distances, "x", x);
    receivers = adjacency(op, row_ptr, neighbors, edges, x);
    senders = adjacency(op, t_row_ptr, t_neighbors, t_edges, x);
    const bool symmetric = !edges && t_edges && receivers.row_ptr == senders.row_ptr &&
                           receivers.neighbors == senders.neighbors;
    reverse = symmetric ? senders.edges : nullptr;
    check_size(op, "distances", distances, 0, neighbors.numel());
    check_size(op, "x", x, 0, senders.rows);
  }

  template <typename T>
  SplineFilters<T> filters() const {
    const SplineGrid<T> grid{T(start), T(stop), T(static_cast<double>(intervals) / (stop - start)),
                             static_cast<int32_t>(intervals), zero_beyond};
    return {grid, table.const_data_ptr<T>(), distances.const_data_ptr<T>(), degree, x.size(1)};
  }

  int threads() const { return threads_for(distances.numel() * x.size(1) * 2); }

  void check_cotangent(const char* op, const Tensor& g) const {
    check_real(op, "g", g, 2);
    check_like(op, "g", g, "x", x);
    check_size(op, "g", g, 0, receivers.rows);
    check_size(op, "g", g, 1, x.size(1));
  }
};

// Row pointers, edges, senders and receivers of the edges by interval, in one tensor.
SplineBins bins_of(const char* op, const OptionalTensor& bins, const Arguments& in) {
  TORCH_CHECK_VALUE(bins, op, ": the gradient of the table needs the edges by interval");
  check_index(op, "bins", *bins, in.x);
  const int64_t edges = in.distances.numel();
  check_size(op, "bins", *bins, 0, in.intervals + 1 + 3 * edges);
  const int32_t* ptr = bins->const_data_ptr<int32_t>();
  const int32_t* first = ptr + in.intervals + 1;
  return {ptr, first, first + edges, first + 2 * edges, edges};
}

template <typename T>
const T* data(const OptionalTensor& tensor) {
  return tensor ? tensor->const_data_ptr<T>() : nullptr;
}

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

// The edges by interval, see bins_of; those that are zero or padding in none. Not differentiable.
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
// formula reads the edges by interval and whether some edges belong to no row.
Tensor spline_cfconv(const Tensor& x, const Tensor& table, const Tensor& distances,
                     const Tensor& row_ptr, const Tensor& neighbors, const OptionalTensor& edges,
                     const Tensor& t_row_ptr, const Tensor& t_neighbors,
                     const OptionalTensor& t_edges, const OptionalTensor&, double start,
                     double stop, int64_t degree, bool zero_beyond, bool) {
  constexpr auto op = "spline_cfconv";
  const Arguments in(op, x, table, distances, row_ptr, neighbors, edges, t_row_ptr, t_neighbors,
                     t_edges, start, stop, degree, zero_beyond);
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
                                 in.threads());
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
  if (bins) workspace = at::empty({workspace_size(in)}, in.x.options());
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
    const int threads = in.threads();
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
                     t_edges, start, stop, degree, zero_beyond);
  in.check_cotangent(op, g);
  if (added) {
    check_real(op, "added", *added, 1);
    check_like(op, "added", *added, "x", x);
    check_size(op, "added", *added, 0, distances.numel());
  }
  const c10::DeviceGuard guard(x.device());
  const Tensor gx = empty_result({in.senders.rows, x.size(1)}, x.options());
  const Tensor gd = empty_result({distances.numel()}, x.options());
  const Tensor gc = at::empty({need_table ? table.size(0) : 0, x.size(1)}, x.options());
  if (padded) gd.zero_();
  SplineBins bins{};
  if (need_table) bins = bins_of(op, bins_in, in);
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
                     t_edges, start, stop, degree, zero_beyond);
  in.check_cotangent(op, g);
  const auto check = [&](const char* name, const OptionalTensor& h, const Tensor& like) {
    if (!h) return;
    check_real(op, name, *h, like.dim());
    check_like(op, name, *h, "x", x);
    for (int64_t dim = 0; dim < like.dim(); ++dim) check_size(op, name, *h, dim, like.size(dim));
  };
  check("hx", hx, x);
  check("hd", hd, distances);
  check("hc", hc, table);
  const c10::DeviceGuard guard(x.device());
  const Tensor gg = empty_result({in.receivers.rows, x.size(1)}, x.options());
  const Tensor gx = empty_result({in.senders.rows, x.size(1)}, x.options());
  const Tensor gd = empty_result({distances.numel()}, x.options());
  const Tensor gc = at::empty({need_table ? table.size(0) : 0, x.size(1)}, x.options());
  if (padded) gd.zero_();
  SplineBins bins{};
  if (need_table) bins = bins_of(op, bins_in, in);
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
                                 in.threads());
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
  library.impl("spline_bins", spline_bins);
  library.impl("spline_cfconv", spline_cfconv);
  library.impl("spline_cfconv_grad", spline_cfconv_grad);
  library.impl("spline_cfconv_hvp", spline_cfconv_hvp);
}

#ifdef MOLKERN_WITH_CUDA
TORCH_LIBRARY_IMPL(molkern, CUDA, library) {
  library.impl("spline_bins", spline_bins);
  library.impl("spline_cfconv", spline_cfconv);
  library.impl("spline_cfconv_grad", spline_cfconv_grad);
  library.impl("spline_cfconv_hvp", spline_cfconv_hvp);
}
#endif

}  // namespace molkern
