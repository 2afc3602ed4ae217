#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/softplus.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/where.h>
#include <torch/library.h>

#include <cmath>
#include <tuple>

#include "common/torch_utils.h"
#include "dense/dense.h"

namespace molkern {

// Rows of panels are at most 32 numbers wide.
int64_t dense_workspace(const DenseShape& shape) {
  return (shape.columns + 31) / 32 * 32 * (shape.depth + 1);
}

namespace {

constexpr double softplus_threshold = 20;

// Threads that share the multiplications, sixteen of which take as long as one number of memory.
int dense_threads(const DenseShape& shape) {
  return threads_for(shape.rows * (shape.columns * shape.depth / 16 + shape.columns + shape.depth));
}

// The arguments of the product, checked.
struct Arguments {
  Tensor x, weight;
  OptionalTensor bias, residual, gate_basis, gate_weight;
  Activation activation;
  bool with_slope, with_value;
  DenseShape shape;

  Arguments(const char* op, const Tensor& x_in, const Tensor& weight_in,
            const OptionalTensor& bias_in, const OptionalTensor& residual_in,
            const OptionalTensor& gate_basis_in, const OptionalTensor& gate_weight_in,
            int64_t activation_in, bool need_slope, bool need_value)
      : x(x_in), weight(weight_in) {
    TORCH_CHECK_VALUE(activation_in >= 0 && activation_in <= 3, op,
                      ": activation must be 0, 1, 2 or 3, got ", activation_in);
    activation = static_cast<Activation>(activation_in);
    TORCH_CHECK_VALUE(gate_basis_in.has_value() == gate_weight_in.has_value(), op,
                      ": gate_basis and gate_weight must be given together");
    with_slope = need_slope && (activation != Activation::none || gate_basis_in);
    with_value = need_value && gate_basis_in;
    check_real(op, "x", x, 2);
    check_real(op, "weight", weight, 2);
    check_like(op, "weight", weight, "x", x);
    check_size(op, "weight", weight, 1, x.size(1));
    shape = {x.size(0), weight.size(0), x.size(1)};
    if (bias_in) {
      bias = bias_in;
      check_real(op, "bias", *bias, 1);
      check_like(op, "bias", *bias, "x", x);
      check_size(op, "bias", *bias, 0, shape.columns);
    }
    if (residual_in) {
      residual = residual_in;
      check_real(op, "residual", *residual, 2);
      check_like(op, "residual", *residual, "x", x);
      check_size(op, "residual", *residual, 0, shape.rows);
      check_size(op, "residual", *residual, 1, shape.columns);
    }
    if (gate_basis_in) {
      gate_basis = gate_basis_in;
      gate_weight = gate_weight_in;
      check_real(op, "gate_basis", *gate_basis, 2);
      check_like(op, "gate_basis", *gate_basis, "x", x);
      check_size(op, "gate_basis", *gate_basis, 0, shape.rows);
      check_real(op, "gate_weight", *gate_weight, 2);
      check_like(op, "gate_weight", *gate_weight, "x", x);
      check_size(op, "gate_weight", *gate_weight, 0, shape.columns);
      check_size(op, "gate_weight", *gate_weight, 1, gate_basis->size(1));
    }
  }

  // An output [M, N], or [0] where it is not needed.
  Tensor new_output(bool needed) const {
    return needed ? empty_result({shape.rows, shape.columns}, x.options())
                  : empty_result({0}, x.options());
  }

  Tensor new_workspace() const {
    int64_t size = dense_workspace(shape);
    if (gate_basis) size += dense_workspace({shape.rows, shape.columns, gate_basis->size(1)});
    return empty_result({size}, x.options());
  }
};

// x [M, K], weight [N, K], bias [N], residual [M, N], gate_basis [M, R], gate_weight [N, R]
// -> y [M, N], slope [M, N] or [0], value [M, N] or [0]
std::tuple<Tensor, Tensor, Tensor> dense(const Tensor& x_in, const Tensor& weight_in,
                                         const OptionalTensor& bias_in,
                                         const OptionalTensor& residual_in,
                                         const OptionalTensor& gate_basis,
                                         const OptionalTensor& gate_weight, int64_t activation,
                                         bool need_slope, bool need_value) {
  const Arguments in("dense", x_in, weight_in, bias_in, residual_in, gate_basis, gate_weight,
                     activation, need_slope, need_value);
  const Tensor y = in.new_output(true);
  const Tensor slope = in.new_output(in.with_slope), value = in.new_output(in.with_value);
  const Tensor workspace = in.new_workspace();
  with_real(in.x, [&](auto zero) {
    using T = decltype(zero);
    DenseGate<T> gate{};
    if (in.gate_basis)
      gate = {data<T>(in.gate_basis), data<T>(in.gate_weight), in.gate_basis->size(1)};
    T* slope_data = in.with_slope ? slope.mutable_data_ptr<T>() : nullptr;
    T* value_data = in.with_value ? value.mutable_data_ptr<T>() : nullptr;
    with_isa([&](auto isa) {
      dense_cpu<isa(), T>(in.activation, in.x.const_data_ptr<T>(), in.weight.const_data_ptr<T>(),
                          data<T>(in.bias), data<T>(in.residual), in.gate_basis ? &gate : nullptr,
                          y.mutable_data_ptr<T>(), slope_data, value_data,
                          workspace.mutable_data_ptr<T>(), in.shape, dense_threads(in.shape));
    });
  });
  return {y, slope, value};
}

std::tuple<Tensor, Tensor> activate_composed(Activation activation, const Tensor& z,
                                             bool with_slope) {
  const Tensor none = empty_result({0}, z.options());
  switch (activation) {
    case Activation::none:
      break;
    case Activation::silu: {
      if (!with_slope) return {at::silu(z), none};
      const Tensor sigma = at::sigmoid(z);
      return {z * sigma, sigma * (1 + z * (1 - sigma))};
    }
    case Activation::ssp: {
      const Tensor value = at::softplus(z, 1, softplus_threshold) - std::log(2.0);
      if (!with_slope) return {value, none};
      return {value, at::where(z > softplus_threshold, 1.0, at::sigmoid(z)).to(z.scalar_type())};
    }
    case Activation::tanh: {
      const Tensor value = at::tanh(z);
      return {value, with_slope ? 1 - value * value : none};
    }
  }
  return {z, none};
}

// The same for any device, composed of torch's operators.
std::tuple<Tensor, Tensor, Tensor> dense_composed(
    const Tensor& x_in, const Tensor& weight_in, const OptionalTensor& bias_in,
    const OptionalTensor& residual_in, const OptionalTensor& gate_basis,
    const OptionalTensor& gate_weight, int64_t activation, bool need_slope, bool need_value) {
  const Arguments in("dense", x_in, weight_in, bias_in, residual_in, gate_basis, gate_weight,
                     activation, need_slope, need_value);
  const Tensor transposed = in.weight.t();
  const Tensor z = in.bias ? at::addmm(*in.bias, in.x, transposed) : at::mm(in.x, transposed);
  const bool bent = in.activation != Activation::none;
  const auto [value, slope] = activate_composed(in.activation, z, in.with_slope && bent);
  const Tensor none = empty_result({0}, z.options());
  if (!in.gate_basis) return {in.residual ? *in.residual + value : value, slope, none};
  const Tensor gate = at::mm(*in.gate_basis, in.gate_weight->t());
  const Tensor y = value * gate;
  return {in.residual ? *in.residual + y : y, !in.with_slope ? none : (bent ? slope * gate : gate),
          in.with_value ? value : none};
}

// The arguments of the gradient, checked.
struct GradArguments {
  Tensor g, weight;
  OptionalTensor slope, residual;
  DenseShape shape;

  GradArguments(const char* op, const Tensor& g_in, const OptionalTensor& slope_in,
                const Tensor& weight_in, const OptionalTensor& residual_in)
      : g(g_in), weight(weight_in) {
    check_real(op, "g", g, 2);
    check_real(op, "weight", weight, 2);
    check_like(op, "weight", weight, "g", g);
    check_size(op, "weight", weight, 0, g.size(1));
    shape = {g.size(0), weight.size(1), g.size(1)};
    if (slope_in) {
      slope = slope_in;
      check_real(op, "slope", *slope, 2);
      check_like(op, "slope", *slope, "g", g);
      check_size(op, "slope", *slope, 0, g.size(0));
      check_size(op, "slope", *slope, 1, g.size(1));
    }
    if (residual_in) {
      residual = residual_in;
      check_real(op, "residual", *residual, 2);
      check_like(op, "residual", *residual, "g", g);
      check_size(op, "residual", *residual, 0, shape.rows);
      check_size(op, "residual", *residual, 1, shape.columns);
    }
  }
};

// g [M, N], slope [M, N] or none for 1, weight [N, K], residual [M, K] -> [M, K]
Tensor dense_input_grad(const Tensor& g_in, const OptionalTensor& slope_in, const Tensor& weight_in,
                        const OptionalTensor& residual) {
  const GradArguments in("dense_input_grad", g_in, slope_in, weight_in, residual);
  const Tensor gx = empty_result({in.shape.rows, in.shape.columns}, in.g.options());
  const Tensor workspace = empty_result({dense_workspace(in.shape)}, in.g.options());
  with_real(in.g, [&](auto zero) {
    using T = decltype(zero);
    with_isa([&](auto isa) {
      dense_input_grad_cpu<isa(), T>(in.g.const_data_ptr<T>(), data<T>(in.slope),
                                     in.weight.const_data_ptr<T>(), data<T>(in.residual),
                                     gx.mutable_data_ptr<T>(), workspace.mutable_data_ptr<T>(),
                                     in.shape, dense_threads(in.shape));
    });
  });
  return gx;
}

Tensor dense_input_grad_composed(const Tensor& g_in, const OptionalTensor& slope_in,
                                 const Tensor& weight_in, const OptionalTensor& residual) {
  const GradArguments in("dense_input_grad", g_in, slope_in, weight_in, residual);
  const Tensor gz = in.slope ? in.g * *in.slope : in.g;
  return in.residual ? at::addmm(*in.residual, gz, in.weight) : at::mm(gz, in.weight);
}

// x [M, K], weight1 [N, K], bias1 [N], weight2 [K, N], bias2 [K]
// -> y [M, K], h [M, N], slope1 [M, N] or [0], slope2 [M, K] or [0]
template <auto& layer>
std::tuple<Tensor, Tensor, Tensor, Tensor> dense_residual(const Tensor& x, const Tensor& weight1,
                                                          const OptionalTensor& bias1,
                                                          const Tensor& weight2,
                                                          const OptionalTensor& bias2,
                                                          int64_t activation, bool need_slope) {
  const auto apply = [&](const Tensor& in, const Tensor& weight, const OptionalTensor& bias,
                         const OptionalTensor& residual) {
    return layer(in, weight, bias, residual, {}, {}, activation, need_slope, false);
  };
  const auto [h, slope1, none1] = apply(x, weight1, bias1, {});
  const auto [y, slope2, none2] = apply(h, weight2, bias2, x);
  return {y, h, slope1, slope2};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(molkern, library) {
  library.def(
      "dense(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor? gate_basis, "
      "Tensor? gate_weight, int activation, bool need_slope, bool need_value) "
      "-> (Tensor, Tensor, Tensor)");
  library.def(
      "dense_input_grad(Tensor g, Tensor? slope, Tensor weight, Tensor? residual) -> Tensor");
  library.def(
      "dense_residual(Tensor x, Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2, "
      "int activation, bool need_slope) -> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(molkern, CPU, library) {
  library.impl("dense", any_layout<dense>);
  library.impl("dense_input_grad", any_layout<dense_input_grad>);
  library.impl("dense_residual", any_layout<dense_residual<dense>>);
}

TORCH_LIBRARY_IMPL(molkern, CompositeExplicitAutograd, library) {
  library.impl("dense", any_layout<dense_composed>);
  library.impl("dense_input_grad", any_layout<dense_input_grad_composed>);
  library.impl("dense_residual", any_layout<dense_residual<dense_composed>>);
}

}  // namespace molkern
