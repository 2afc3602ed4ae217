#include <torch/library.h>

#include <cmath>
#include <tuple>

#include "common/torch_utils.h"
#include "radial/radial.h"

namespace molkern {
namespace {

RadialForm checked_form(const char* op, int64_t basis, int64_t cutoff_function, double cutoff,
                        double alpha, int64_t exponent) {
  TORCH_CHECK_VALUE(basis >= 0 && basis <= 2, op, ": basis must be 0, 1 or 2, got ", basis);
  TORCH_CHECK_VALUE(cutoff_function >= 0 && cutoff_function <= 3, op,
                    ": cutoff_function must be 0, 1, 2 or 3, got ", cutoff_function);
  TORCH_CHECK_VALUE(cutoff > 0 && std::isfinite(cutoff), op,
                    ": cutoff must be positive and finite, got ", cutoff);
  TORCH_CHECK_VALUE(alpha > 0 && std::isfinite(alpha), op,
                    ": alpha must be positive and finite, got ", alpha);
  TORCH_CHECK_VALUE(exponent >= 1 && exponent <= 100, op, ": exponent must be 1 to 100, got ",
                    exponent);
  return {static_cast<RadialBasis>(basis), static_cast<CutoffFunction>(cutoff_function), cutoff,
          alpha, static_cast<int>(exponent)};
}

// The arguments that all three operators share, checked.
struct Arguments {
  Tensor d, p;
  OptionalTensor q;
  int64_t edges, functions;

  Arguments(const char* op, const RadialForm& form, const Tensor& distances, const Tensor& centers,
            const OptionalTensor& widths)
      : d(distances), p(centers) {
    check_real(op, "distances", d, 1);
    check_real(op, "centers", p, 1);
    check_like(op, "centers", p, "distances", d);
    edges = d.numel();
    functions = p.numel();
    TORCH_CHECK_VALUE(functions >= 1, op, ": centers must name at least one function");
    if (form.basis == RadialBasis::bessel) {
      TORCH_CHECK_VALUE(!widths, op, ": the bessel basis has no widths");
      return;
    }
    TORCH_CHECK_VALUE(widths, op, ": this basis needs widths");
    q = widths;
    check_real(op, "widths", *q, 1);
    check_like(op, "widths", *q, "distances", d);
    TORCH_CHECK_VALUE(q->numel() == functions, op,
                      ": widths must have as many numbers as centers (", functions, "), got ",
                      q->numel());
  }

  void check_cotangent(const char* op, const Tensor& g) const {
    check_real(op, "g", g, 2);
    check_like(op, "g", g, "distances", d);
    check_size(op, "g", g, 0, edges);
    check_size(op, "g", g, 1, functions);
  }

  void check_direction(const char* op, const char* name, const OptionalTensor& h,
                       int64_t size) const {
    if (!h) return;
    check_real(op, name, *h, 1);
    check_like(op, name, *h, "distances", d);
    check_size(op, name, *h, 0, size);
  }

  // What the CUDA kernels sum parameter derivatives in.
  [[maybe_unused]] Tensor workspace(bool need_params) const;
};

[[maybe_unused]] Tensor Arguments::workspace([[maybe_unused]] bool need_params) const {
#ifdef MOLKERN_HAS_CUDA_KERNELS
  return empty_result({need_params ? radial_basis_workspace(edges, functions) : 0}, d.options());
#else
  return {};
#endif
}

// Null for a derivative that nobody asked for.
template <typename T>
T* output(const Tensor& tensor, bool wanted) {
  return wanted ? tensor.mutable_data_ptr<T>() : nullptr;
}

// d [E], p [K], q [K] or none -> [E, K]
Tensor radial_basis(const Tensor& distances, const Tensor& centers, const OptionalTensor& widths,
                    int64_t basis, int64_t cutoff_function, double cutoff, double alpha,
                    int64_t exponent) {
  constexpr auto op = "radial_basis";
  const RadialForm form = checked_form(op, basis, cutoff_function, cutoff, alpha, exponent);
  const Arguments in(op, form, distances, centers, widths);
  const c10::DeviceGuard guard(in.d.device());
  const Tensor y = empty_result({in.edges, in.functions}, in.d.options());
  with_real(in.d, [&](auto zero) {
    using T = decltype(zero);
    const T *d = in.d.const_data_ptr<T>(), *p = in.p.const_data_ptr<T>(), *q = data<T>(in.q);
    T* out = y.mutable_data_ptr<T>();
#ifdef MOLKERN_HAS_CUDA_KERNELS
    if (on_cuda(in.d))
      return radial_basis_cuda<T>(form, d, p, q, out, in.edges, in.functions, current_stream(in.d));
#endif
    with_isa([&](auto isa) {
      radial_basis_cpu<isa(), T>(form, d, p, q, out, in.edges, in.functions,
                                 threads_for(4 * in.edges * in.functions));
    });
  });
  return y;
}

// g [E, K] -> gd [E], gp [K], gq [K]; the last two are empty unless they are needed and exist.
std::tuple<Tensor, Tensor, Tensor> radial_basis_grad(const Tensor& g_in, const Tensor& distances,
                                                     const Tensor& centers,
                                                     const OptionalTensor& widths, int64_t basis,
                                                     int64_t cutoff_function, double cutoff,
                                                     double alpha, int64_t exponent,
                                                     bool need_params) {
  constexpr auto op = "radial_basis_grad";
  const RadialForm form = checked_form(op, basis, cutoff_function, cutoff, alpha, exponent);
  const Arguments in(op, form, distances, centers, widths);
  in.check_cotangent(op, g_in);
  const bool need_q = need_params && in.q;
  const c10::DeviceGuard guard(in.d.device());
  const Tensor gd = empty_result({in.edges}, in.d.options());
  const Tensor gp = empty_result({need_params ? in.functions : 0}, in.d.options());
  const Tensor gq = empty_result({need_q ? in.functions : 0}, in.d.options());
  with_real(in.d, [&](auto zero) {
    using T = decltype(zero);
    const T *d = in.d.const_data_ptr<T>(), *p = in.p.const_data_ptr<T>(), *q = data<T>(in.q);
    const T* g = g_in.const_data_ptr<T>();
    T *out_d = output<T>(gd, true), *out_p = output<T>(gp, need_params);
    T* out_q = output<T>(gq, need_q);
#ifdef MOLKERN_HAS_CUDA_KERNELS
    if (on_cuda(in.d)) {
      const Tensor space = in.workspace(need_params);
      return radial_basis_grad_cuda<T>(form, g, d, p, q, out_d, out_p, out_q,
                                       space.mutable_data_ptr<T>(), in.edges, in.functions,
                                       current_stream(in.d));
    }
#endif
    with_isa([&](auto isa) {
      radial_basis_grad_cpu<isa(), T>(form, g, d, p, q, out_d, out_p, out_q, in.edges, in.functions,
                                      threads_for(4 * in.edges * in.functions));
    });
  });
  return {gd, gp, gq};
}

// hd [E], hp [K], hq [K] (none is zero), g [E, K] -> tg [E, K], td [E], tp [K], tq [K]; the last
// two are empty unless they are needed and exist.
std::tuple<Tensor, Tensor, Tensor, Tensor> radial_basis_hvp(
    const OptionalTensor& hd_in, const OptionalTensor& hp_in, const OptionalTensor& hq_in,
    const Tensor& g_in, const Tensor& distances, const Tensor& centers,
    const OptionalTensor& widths, int64_t basis, int64_t cutoff_function, double cutoff,
    double alpha, int64_t exponent, bool need_params) {
  constexpr auto op = "radial_basis_hvp";
  const RadialForm form = checked_form(op, basis, cutoff_function, cutoff, alpha, exponent);
  const Arguments in(op, form, distances, centers, widths);
  in.check_cotangent(op, g_in);
  in.check_direction(op, "hd", hd_in, in.edges);
  in.check_direction(op, "hp", hp_in, in.functions);
  in.check_direction(op, "hq", hq_in, in.functions);
  const bool need_q = need_params && in.q;
  const c10::DeviceGuard guard(in.d.device());
  const Tensor tg = empty_result({in.edges, in.functions}, in.d.options());
  const Tensor td = empty_result({in.edges}, in.d.options());
  const Tensor tp = empty_result({need_params ? in.functions : 0}, in.d.options());
  const Tensor tq = empty_result({need_q ? in.functions : 0}, in.d.options());
  with_real(in.d, [&](auto zero) {
    using T = decltype(zero);
    const T *d = in.d.const_data_ptr<T>(), *p = in.p.const_data_ptr<T>(), *q = data<T>(in.q);
    const T *hd = data<T>(hd_in), *hp = data<T>(hp_in), *hq = data<T>(hq_in);
    const T* g = g_in.const_data_ptr<T>();
    T *out_g = output<T>(tg, true), *out_d = output<T>(td, true);
    T *out_p = output<T>(tp, need_params), *out_q = output<T>(tq, need_q);
#ifdef MOLKERN_HAS_CUDA_KERNELS
    if (on_cuda(in.d)) {
      const Tensor space = in.workspace(need_params);
      return radial_basis_hvp_cuda<T>(form, hd, hp, hq, g, d, p, q, out_g, out_d, out_p, out_q,
                                      space.mutable_data_ptr<T>(), in.edges, in.functions,
                                      current_stream(in.d));
    }
#endif
    with_isa([&](auto isa) {
      radial_basis_hvp_cpu<isa(), T>(form, hd, hp, hq, g, d, p, q, out_g, out_d, out_p, out_q,
                                     in.edges, in.functions,
                                     threads_for(4 * in.edges * in.functions));
    });
  });
  return {tg, td, tp, tq};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(molkern, library) {
  library.def(
      "radial_basis(Tensor d, Tensor p, Tensor? q, int basis, int cutoff_function, float cutoff, "
      "float alpha, int exponent) -> Tensor");
  library.def(
      "radial_basis_grad(Tensor g, Tensor d, Tensor p, Tensor? q, int basis, int cutoff_function, "
      "float cutoff, float alpha, int exponent, bool need_params) -> (Tensor, Tensor, Tensor)");
  library.def(
      "radial_basis_hvp(Tensor? hd, Tensor? hp, Tensor? hq, Tensor g, Tensor d, Tensor p, "
      "Tensor? q, int basis, int cutoff_function, float cutoff, float alpha, int exponent, "
      "bool need_params) -> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(molkern, CPU, library) {
  library.impl("radial_basis", any_layout<radial_basis>);
  library.impl("radial_basis_grad", any_layout<radial_basis_grad>);
  library.impl("radial_basis_hvp", any_layout<radial_basis_hvp>);
}

#ifdef MOLKERN_WITH_CUDA
TORCH_LIBRARY_IMPL(molkern, CUDA, library) {
  library.impl("radial_basis", any_layout<radial_basis>);
  library.impl("radial_basis_grad", any_layout<radial_basis_grad>);
  library.impl("radial_basis_hvp", any_layout<radial_basis_hvp>);
}
#endif

}  // namespace molkern
