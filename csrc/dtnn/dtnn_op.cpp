#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

#include "dtnn/dtnn.h"
#include "splines/spline_arguments.h"

namespace molkern {
namespace {

// The weight beside what all operators with splines take.
struct Arguments : SplineArguments {
  const Tensor& weight;

  template <typename... Rest>
  Arguments(const char* op, const Tensor& x, const Tensor& table, const Tensor& distances,
            const Tensor& weight_in, const Rest&... rest)
      : SplineArguments(op, x, table, distances, rest...), weight(weight_in) {
    check_real(op, "weight", weight, 2);
    check_like(op, "weight", weight, "x", x);
    check_size(op, "weight", weight, 1, x.size(1));
  }

  template <typename T>
  DtnnInputs<T> inputs() const {
    return {filters<T>(), x.const_data_ptr<T>(), weight.const_data_ptr<T>(), weight.size(0)};
  }

  // No factor or no channel.
  bool is_zero() const { return weight.numel() == 0; }

  // Eight products of a matrix take about as long as a number of another kind.
  int threads() const {
    return threads_for(distances.numel() * x.size(1) * (2 + weight.size(0) / 8));
  }

  // The edges by interval; only GPUs read them.
  SplineBins bins_if_read(const char* op, const OptionalTensor& tensor, bool needed) const {
    return tensor || (needed && on_cuda(x)) ? bins(op, tensor) : SplineBins{};
  }

  // What the kernels for GPUs work in.
  Tensor workspace(bool need_table, bool need_weight) const {
    return empty_result({dtnn_cuda_workspace(senders.rows, weight.size(0), x.size(1), intervals,
                                             degree, need_table, need_weight)},
                        x.options());
  }
};

template <typename T>
void run_value(const Arguments& in, const DtnnDirection<T>* direction, const Tensor& y) {
  if (in.is_zero()) return void(y.zero_());
  const DtnnInputs<T> inputs = in.inputs<T>();
  T* y_data = y.mutable_data_ptr<T>();
#ifdef MOLKERN_HAS_CUDA_KERNELS
  if (on_cuda(in.x)) {
    const Tensor workspace = in.workspace(false, false);
    return dtnn_value_cuda<T>(in.receivers, inputs, direction, y_data,
                              workspace.mutable_data_ptr<T>(), current_stream(in.x));
  }
#endif
  with_isa([&](auto isa) {
    dtnn_value_cpu<isa(), T>(in.receivers, inputs, direction, y_data, in.threads());
  });
}

// gx, gd, gC and gW; the latter two are empty where they are not needed.
struct Gradients {
  Tensor x, distances, table, weight;
  bool need_table, need_weight;

  Gradients(const Arguments& in, bool padded, bool need_table, bool need_weight)
      : x(empty_result(in.x.sizes(), in.x.options())),
        distances(empty_result(in.distances.sizes(), in.x.options())),
        table(empty_result({need_table ? in.table.size(0) : 0, in.x.size(1)}, in.x.options())),
        weight(empty_result({need_weight ? in.weight.size(0) : 0, in.x.size(1)}, in.x.options())),
        need_table(need_table),
        need_weight(need_weight) {
    if (padded) distances.zero_();
  }

  void clear(const OptionalTensor& added) const {
    for (const Tensor& each : {x, distances, table, weight}) each.zero_();
    if (added) distances.copy_(*added);
  }

  template <typename T>
  DtnnGradients<T> pointers() const {
    return {x.mutable_data_ptr<T>(), distances.mutable_data_ptr<T>(),
            need_table ? table.mutable_data_ptr<T>() : nullptr,
            need_weight ? weight.mutable_data_ptr<T>() : nullptr};
  }
};

// Without a direction the gradient, with one the product but for gg.
template <typename T>
void run_grad(const Arguments& in, const SplineBins& bins, const Tensor& g,
              const DtnnDirection<T>* direction, const OptionalTensor& added,
              const Gradients& out) {
  if (in.is_zero()) return out.clear(added);
  const DtnnInputs<T> inputs = in.inputs<T>();
  const DtnnGradients<T> gradients = out.pointers<T>();
  const T *g_data = g.const_data_ptr<T>(), *added_data = data<T>(added);
#ifdef MOLKERN_HAS_CUDA_KERNELS
  if (on_cuda(in.x)) {
    const Tensor workspace = in.workspace(out.need_table, out.need_weight);
    return dtnn_grad_cuda<T>(in.senders, out.need_table ? &bins : nullptr, inputs, g_data,
                             direction, added_data, gradients, workspace.mutable_data_ptr<T>(),
                             current_stream(in.x));
  }
#endif
  // Of the edges that rows name: padding must not change any bit.
  const int64_t blocks = dtnn_blocks(in.senders.row_ptr[in.senders.rows], in.table.size(0));
  const int64_t part_rows = out.table.size(0) + out.weight.size(0);
  const Tensor parts = empty_result({blocks, part_rows, dtnn_padded(in.x.size(1))}, in.x.options());
  T* parts_data = parts.mutable_data_ptr<T>();
  with_isa([&](auto isa) {
    dtnn_grad_cpu<isa(), T>(in.senders, inputs, g_data, direction, added_data, gradients,
                            parts_data, blocks, in.threads());
  });
}

// x [atoms, K], table [intervals + degree, K], distances [E], weight [C, K] -> [rows, C]. Only the
// backward formula reads the edges by interval.
Tensor dtnn_message(const Tensor& x, const Tensor& table, const Tensor& distances,
                    const Tensor& weight, const Tensor& row_ptr, const Tensor& neighbors,
                    const OptionalTensor& edges, const Tensor& t_row_ptr, const Tensor& t_neighbors,
                    const OptionalTensor& t_edges, const OptionalTensor&, double start, double stop,
                    int64_t degree, bool zero_beyond, bool padded) {
  constexpr auto op = "dtnn_message";
  const Arguments in(op, x, table, distances, weight, row_ptr, neighbors, edges, t_row_ptr,
                     t_neighbors, t_edges, start, stop, degree, zero_beyond, padded);
  const c10::DeviceGuard guard(x.device());
  const Tensor y = empty_result({in.receivers.rows, weight.size(0)}, x.options());
  with_real(x, [&](auto zero) { run_value<decltype(zero)>(in, nullptr, y); });
  return y;
}

// g [rows, C] -> gx [atoms, K], gd [E] on top of `added`, gC as the table or [0, K], gW as the
// weight or [0, K].
std::tuple<Tensor, Tensor, Tensor, Tensor> dtnn_message_grad(
    const Tensor& g, const Tensor& x, const Tensor& table, const Tensor& distances,
    const Tensor& weight, const OptionalTensor& added, const Tensor& row_ptr,
    const Tensor& neighbors, const OptionalTensor& edges, const Tensor& t_row_ptr,
    const Tensor& t_neighbors, const OptionalTensor& t_edges, const OptionalTensor& bins,
    double start, double stop, int64_t degree, bool zero_beyond, bool padded, bool need_table,
    bool need_weight) {
  constexpr auto op = "dtnn_message_grad";
  const Arguments in(op, x, table, distances, weight, row_ptr, neighbors, edges, t_row_ptr,
                     t_neighbors, t_edges, start, stop, degree, zero_beyond, padded);
  in.check_cotangent(op, g, weight.size(0));
  in.check_part(op, "added", added, distances);
  const SplineBins edges_by_interval = in.bins_if_read(op, bins, need_table);
  const c10::DeviceGuard guard(x.device());
  const Gradients out(in, padded, need_table, need_weight);
  with_real(x, [&](auto zero) {
    run_grad<decltype(zero)>(in, edges_by_interval, g, nullptr, added, out);
  });
  return {out.x, out.distances, out.table, out.weight};
}

// hx [atoms, K], hd [E], hC as the table, hW as the weight, each may be absent -> gg [rows, C], gx,
// gd, gC, gW.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> dtnn_message_hvp(
    const OptionalTensor& hx, const OptionalTensor& hd, const OptionalTensor& hc,
    const OptionalTensor& hw, const Tensor& g, const Tensor& x, const Tensor& table,
    const Tensor& distances, const Tensor& weight, const Tensor& row_ptr, const Tensor& neighbors,
    const OptionalTensor& edges, const Tensor& t_row_ptr, const Tensor& t_neighbors,
    const OptionalTensor& t_edges, const OptionalTensor& bins, double start, double stop,
    int64_t degree, bool zero_beyond, bool padded, bool need_table, bool need_weight) {
  constexpr auto op = "dtnn_message_hvp";
  const Arguments in(op, x, table, distances, weight, row_ptr, neighbors, edges, t_row_ptr,
                     t_neighbors, t_edges, start, stop, degree, zero_beyond, padded);
  in.check_cotangent(op, g, weight.size(0));
  const SplineBins edges_by_interval = in.bins_if_read(op, bins, need_table);
  in.check_part(op, "hx", hx, x);
  in.check_part(op, "hd", hd, distances);
  in.check_part(op, "hc", hc, table);
  in.check_part(op, "hw", hw, weight);
  const c10::DeviceGuard guard(x.device());
  const Tensor gg = empty_result({in.receivers.rows, weight.size(0)}, x.options());
  const Gradients out(in, padded, need_table, need_weight);
  with_real(x, [&](auto zero) {
    using T = decltype(zero);
    const DtnnDirection<T> direction{data<T>(hx), data<T>(hd), data<T>(hc), data<T>(hw)};
    run_value<T>(in, &direction, gg);
    run_grad<T>(in, edges_by_interval, g, &direction, {}, out);
  });
  return {gg, out.x, out.distances, out.table, out.weight};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(molkern, library) {
  library.def(
      "dtnn_message(Tensor x, Tensor table, Tensor distances, Tensor weight, Tensor row_ptr, "
      "Tensor neighbors, Tensor? edges, Tensor t_row_ptr, Tensor t_neighbors, Tensor? t_edges, "
      "Tensor? bins, float start, float stop, int degree, bool zero_beyond, bool padded) "
      "-> Tensor");
  library.def(
      "dtnn_message_grad(Tensor g, Tensor x, Tensor table, Tensor distances, Tensor weight, "
      "Tensor? added, Tensor row_ptr, Tensor neighbors, Tensor? edges, Tensor t_row_ptr, "
      "Tensor t_neighbors, Tensor? t_edges, Tensor? bins, float start, float stop, int degree, "
      "bool zero_beyond, bool padded, bool need_table, bool need_weight) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "dtnn_message_hvp(Tensor? hx, Tensor? hd, Tensor? hc, Tensor? hw, Tensor g, Tensor x, "
      "Tensor table, Tensor distances, Tensor weight, Tensor row_ptr, Tensor neighbors, "
      "Tensor? edges, Tensor t_row_ptr, Tensor t_neighbors, Tensor? t_edges, Tensor? bins, "
      "float start, float stop, int degree, bool zero_beyond, bool padded, bool need_table, "
      "bool need_weight) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(molkern, CPU, library) {
  library.impl("dtnn_message", any_layout<dtnn_message>);
  library.impl("dtnn_message_grad", any_layout<dtnn_message_grad>);
  library.impl("dtnn_message_hvp", any_layout<dtnn_message_hvp>);
}

#ifdef MOLKERN_WITH_CUDA
TORCH_LIBRARY_IMPL(molkern, CUDA, library) {
  library.impl("dtnn_message", any_layout<dtnn_message>);
  library.impl("dtnn_message_grad", any_layout<dtnn_message_grad>);
  library.impl("dtnn_message_hvp", any_layout<dtnn_message_hvp>);
}
#endif

}  // namespace molkern
