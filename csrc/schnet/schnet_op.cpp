// SchNet with spline filters, forward and back in one call: values of atoms, and the gradient of
// scale times their sum by positions and cells. Layers are operators as everywhere; here they are
// called without Python between them, which takes as long as their work for a small molecule.
//
//   x = embedding[Z];  d = |r_ij|
//   block  v = W_in x;  y_i = sum_j v_j * w(d_ij);  x = x + W_lin a(W_out y + b) + b
//   head   x = a(W x + b), the last without a; one number per atom
//
// Kept for the way back: v and the slope of a, [N, F] each, for every block; freed block by block.
// For inference: no graph is recorded.
#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/List.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softplus.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>
#include <torch/library.h>

#include <tuple>
#include <utility>
#include <vector>

#include "common/torch_utils.h"

namespace molkern {
namespace {

using Tensors = at::TensorList;

// An operator of this library by its name, with its schema as a C++ type.
template <typename Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// One direction of the graph, then the other.
struct Graph {
  const Tensor &row_ptr, &neighbors;
  const OptionalTensor& edges;
  const Tensor &t_row_ptr, &t_neighbors;
  const OptionalTensor& t_edges;
  bool padded;
};

struct Images {
  const OptionalTensor &cell, &shifts, &system;
};

struct Knots {
  double start, stop;
  int64_t degree;
  bool zero_beyond;
};

// What is applied to a layer's product: an activation of `dense` by its number, or a shifted
// softplus whose threshold and shift are not those of `dense`.
struct Bend {
  static constexpr int64_t own_softplus = 4;
  int64_t kind;
  double threshold, shift;
};

struct Layer {
  const Tensor& weight;
  const OptionalTensor bias;
};

// The layer's output and slope, which is empty where it is not needed.
std::tuple<Tensor, Tensor, Tensor> dense(const Layer& layer, const Tensor& x,
                                         const OptionalTensor& residual, int64_t activation) {
  using Signature = std::tuple<Tensor, Tensor, Tensor>(
      const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
      const OptionalTensor&, const OptionalTensor&, int64_t, bool, bool);
  static const auto handle = find<Signature>("molkern::dense");
  return handle.call(x, layer.weight, layer.bias, residual, {}, {}, activation, activation != 0,
                     false);
}

Tensor linear(const Layer& layer, const Tensor& x, const OptionalTensor& residual = {}) {
  return std::get<0>(dense(layer, x, residual, 0));
}

// A layer's output and the slope of its activation, none for 1.
std::pair<Tensor, OptionalTensor> activated(const Layer& layer, const Bend& bend, const Tensor& x) {
  if (bend.kind == Bend::own_softplus) {
    const Tensor z = linear(layer, x);
    const Tensor slope = at::where(z > bend.threshold, 1.0, at::sigmoid(z)).to(z.scalar_type());
    return {at::softplus(z, 1, bend.threshold) - bend.shift, slope};
  }
  auto [y, slope, none] = dense(layer, x, {}, bend.kind);
  return {y, bend.kind != 0 ? OptionalTensor(slope) : OptionalTensor()};
}

Tensor input_grad(const Layer& layer, const OptionalTensor& slope, const Tensor& g,
                  const OptionalTensor& residual = {}) {
  using Signature =
      Tensor(const Tensor&, const OptionalTensor&, const Tensor&, const OptionalTensor&);
  static const auto grad = find<Signature>("molkern::dense_input_grad");
  return grad.call(g, slope, layer.weight, residual);
}

Tensor convolve(const Tensor& v, const Tensor& table, const Tensor& distances, const Graph& graph,
                const Knots& knots) {
  using Signature =
      Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
             const OptionalTensor&, const Tensor&, const Tensor&, const OptionalTensor&,
             const OptionalTensor&, double, double, int64_t, bool, bool);
  static const auto cfconv = find<Signature>("molkern::spline_cfconv");
  return cfconv.call(v, table, distances, graph.row_ptr, graph.neighbors, graph.edges,
                     graph.t_row_ptr, graph.t_neighbors, graph.t_edges, {}, knots.start, knots.stop,
                     knots.degree, knots.zero_beyond, graph.padded);
}

// The gradients by v and, on top of `added`, by the distances.
std::pair<Tensor, Tensor> convolve_grad(const Tensor& g, const Tensor& v, const Tensor& table,
                                        const Tensor& distances, const OptionalTensor& added,
                                        const Graph& graph, const Knots& knots) {
  using Signature = std::tuple<Tensor, Tensor, Tensor>(
      const Tensor&, const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
      const Tensor&, const Tensor&, const OptionalTensor&, const Tensor&, const Tensor&,
      const OptionalTensor&, const OptionalTensor&, double, double, int64_t, bool, bool, bool);
  static const auto grad = find<Signature>("molkern::spline_cfconv_grad");
  auto [gv, gd, none] =
      grad.call(g, v, table, distances, added, graph.row_ptr, graph.neighbors, graph.edges,
                graph.t_row_ptr, graph.t_neighbors, graph.t_edges, {}, knots.start, knots.stop,
                knots.degree, knots.zero_beyond, graph.padded, false);
  return {gv, gd};
}

Tensor edge_geometry(const char* name, const Tensor& positions, const Images& images,
                     const Graph& graph) {
  using Signature =
      Tensor(const Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
             const Tensor&, const Tensor&, const OptionalTensor&, const Tensor&, const Tensor&,
             const OptionalTensor&, bool);
  return find<Signature>(name).call(positions, images.cell, images.shifts, images.system,
                                    graph.row_ptr, graph.neighbors, graph.edges, graph.t_row_ptr,
                                    graph.t_neighbors, graph.t_edges, graph.padded);
}

// From the gradient by distances to those by positions and cells; the latter empty if not needed.
std::tuple<Tensor, Tensor> pull(const Tensor& gd, const Tensor& positions, const Images& images,
                                const Graph& graph, bool need_cell) {
  const Tensor vectors = edge_geometry("molkern::edge_vectors", positions, images, graph);
  static const auto norm_grad =
      find<Tensor(const Tensor&, const Tensor&)>("molkern::edge_norm_grad");
  const Tensor pulls = norm_grad.call(gd, vectors);
  using Signature =
      std::tuple<Tensor, Tensor>(const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                 int64_t, bool, const Tensor&, const Tensor&, const OptionalTensor&,
                                 const Tensor&, const Tensor&, const OptionalTensor&, bool);
  static const auto adjoint = find<Signature>("molkern::edge_vectors_adjoint");
  const int64_t systems = images.cell ? images.cell->size(0) : 0;
  return adjoint.call(pulls, images.shifts, images.system, systems, need_cell, graph.row_ptr,
                      graph.neighbors, graph.edges, graph.t_row_ptr, graph.t_neighbors,
                      graph.t_edges, graph.padded);
}

struct Network {
  Tensors tables;
  std::vector<Layer> layers;  // three of each block (in, out, lin), then the head's
  std::vector<Bend> bends;    // one of each block, then the head's

  Network(Tensors tables, Tensors weights, const c10::List<OptionalTensor>& biases,
          at::IntArrayRef kinds, at::ArrayRef<double> thresholds, at::ArrayRef<double> shifts)
      : tables(tables) {
    constexpr auto op = "schnet_energy_grad";
    const size_t count = tables.size();
    TORCH_CHECK_VALUE(weights.size() > 3 * count && weights.size() == biases.size(), op,
                      ": weights and biases must be three for each of ", count,
                      " tables and the head's, got ", weights.size(), " and ", biases.size());
    const size_t bent = weights.size() - 2 * count;
    TORCH_CHECK_VALUE(kinds.size() == bent && thresholds.size() == bent && shifts.size() == bent,
                      op, ": there must be an activation, a threshold and a shift for each of ",
                      bent, " layers, got ", kinds.size(), ", ", thresholds.size(), " and ",
                      shifts.size());
    for (size_t k = 0; k < weights.size(); ++k) layers.push_back({weights[k], biases.get(k)});
    for (size_t k = 0; k < bent; ++k) bends.push_back({kinds[k], thresholds[k], shifts[k]});
  }
};

// -> values [N, 1], gradient by positions [N, 3], by cells [B, 3, 3] or [0, 3, 3]
std::tuple<Tensor, Tensor, Tensor> schnet_energy_grad(
    const Tensor& numbers, const Tensor& positions_in, const OptionalTensor& cell,
    const OptionalTensor& shifts, const OptionalTensor& system, const Tensor& row_ptr,
    const Tensor& neighbors, const OptionalTensor& edges, const Tensor& t_row_ptr,
    const Tensor& t_neighbors, const OptionalTensor& t_edges, const Tensor& embedding,
    Tensors tables, Tensors weights, const c10::List<OptionalTensor>& biases,
    at::IntArrayRef activations, at::ArrayRef<double> thresholds,
    at::ArrayRef<double> activation_shifts, const Tensor& scale, double start, double stop,
    int64_t degree, bool zero_beyond, bool padded, bool need_cell) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const Network net(tables, weights, biases, activations, thresholds, activation_shifts);
  const Graph graph{row_ptr, neighbors, edges, t_row_ptr, t_neighbors, t_edges, padded};
  const Images images{cell, shifts, system};
  const Knots knots{start, stop, degree, zero_beyond};
  const Tensor positions = positions_in.contiguous();
  const Tensor distances = edge_geometry("molkern::edge_distances", positions, images, graph);
  const size_t blocks = tables.size();
  std::vector<std::pair<Tensor, OptionalTensor>> kept;
  Tensor x = embedding.index_select(0, numbers);
  for (size_t k = 0; k < blocks; ++k) {
    const Layer* layer = &net.layers[3 * k];
    Tensor v = linear(layer[0], x);
    Tensor y = convolve(v, tables[k], distances, graph, knots);
    auto [h, slope] = activated(layer[1], net.bends[k], y);
    y.reset();
    x = linear(layer[2], h, x);
    kept.emplace_back(std::move(v), std::move(slope));
  }
  std::vector<OptionalTensor> slopes;
  for (size_t k = 3 * blocks; k < net.layers.size(); ++k) {
    auto [y, slope] = activated(net.layers[k], net.bends[k - 2 * blocks], x);
    x = std::move(y);
    slopes.push_back(std::move(slope));
  }

  Tensor g = scale.to(x.scalar_type()).expand({x.size(0), 1});
  for (size_t k = net.layers.size(); k-- > 3 * blocks;) {
    g = input_grad(net.layers[k], slopes.back(), g);
    slopes.pop_back();
  }
  OptionalTensor gd;
  for (size_t k = blocks; k-- > 0;) {
    const Layer* layer = &net.layers[3 * k];
    const auto [v, slope] = std::move(kept.back());
    kept.pop_back();
    Tensor gh = input_grad(layer[2], {}, g);
    const Tensor gy = input_grad(layer[1], slope, gh);
    gh.reset();
    auto [gv, sum] = convolve_grad(gy, v, tables[k], distances, gd, graph, knots);
    gd = std::move(sum);
    // The first features do not depend on the positions.
    if (k > 0) g = input_grad(layer[0], {}, gv, g);
  }
  if (!gd) gd = at::zeros_like(distances);
  g.reset();
  const auto [grad, grad_cell] = pull(*gd, positions, images, graph, need_cell);
  return {x, grad, grad_cell};
}

// Refuses positions and cells (arguments 1 and 2) that derivatives are asked by, which would come out
// as none. The weights of a model always ask: that there is no graph for them is documented.
void no_derivative(
    const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const size_t count = op.schema().arguments().size();
  for (const size_t k : {1, 2}) {
    const c10::IValue& value = torch::jit::peek(*stack, k, count);
    if (!value.isTensor() || !value.toTensor().defined()) continue;
    const Tensor& tensor = value.toTensor();
    TORCH_CHECK(
        !(c10::GradMode::is_enabled() && tensor.requires_grad()) && !tensor._fw_grad(0).defined(),
        "molkern::schnet_energy_grad has no derivative: it records no graph, and its second output "
        "is the gradient by positions. Pass positions and cell with .detach(), or use "
        "model(batch, forces=True) in training mode, or model.hessian(batch)");
  }
  const at::AutoDispatchBelowAutograd guard;
  op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(molkern, library) {
  library.def(
      "schnet_energy_grad(Tensor numbers, Tensor positions, Tensor? cell, Tensor? shifts, "
      "Tensor? system, Tensor row_ptr, Tensor neighbors, Tensor? edges, Tensor t_row_ptr, "
      "Tensor t_neighbors, Tensor? t_edges, Tensor embedding, Tensor[] tables, Tensor[] weights, "
      "Tensor?[] biases, int[] activations, float[] thresholds, float[] activation_shifts, "
      "Tensor scale, float start, float stop, int degree, bool zero_beyond, bool padded, "
      "bool need_cell) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(molkern, CompositeExplicitAutograd, library) {
  library.impl("schnet_energy_grad", schnet_energy_grad);
}

TORCH_LIBRARY_IMPL(molkern, Autograd, library) {
  library.impl("schnet_energy_grad", torch::CppFunction::makeFromBoxedFunction<&no_derivative>());
}

}  // namespace molkern
