#include <torch/library.h>

#include <cmath>
#include <tuple>

#include "common/torch_utils.h"
#include "spherical/spherical.h"

namespace molkern {
namespace {

// The arguments that all three operators share, checked.
struct Arguments {
  const char* op;
  Tensor d, zeros, norms;
  SphericalForm form;
  int64_t edges, functions;

  Arguments(const char* op, const Tensor& distances, const Tensor& zeros_in, const Tensor& norms_in,
            double cutoff, int64_t exponent)
      : op(op), d(distances), zeros(zeros_in), norms(norms_in) {
    TORCH_CHECK_VALUE(cutoff > 0 && std::isfinite(cutoff), op,
                      ": cutoff must be positive and finite, got ", cutoff);
    TORCH_CHECK_VALUE(exponent >= 1 && exponent <= 100, op, ": exponent must be 1 to 100, got ",
                      exponent);
    check_real(op, "distances", d, 1);
    check_constant("zeros", zeros);
    check_constant("norms", norms);
    TORCH_CHECK_VALUE(zeros.size(0) >= 1 && zeros.size(0) <= most_spherical_orders, op,
                      ": zeros must have 1 to ", most_spherical_orders,
                      " orders (rows), got shape ", zeros.sizes());
    TORCH_CHECK_VALUE(zeros.size(1) >= 1 && zeros.size(1) <= 1000000, op,
                      ": zeros must have 1 to 1000000 functions (columns), got shape ",
                      zeros.sizes());
    TORCH_CHECK_VALUE(norms.sizes() == zeros.sizes(), op, ": norms must have the shape of zeros, ",
                      zeros.sizes(), ", got ", norms.sizes());
    edges = d.numel();
    functions = zeros.numel();
    form = {cutoff,
            static_cast<int>(exponent),
            static_cast<int>(zeros.size(0)),
            static_cast<int>(zeros.size(1)),
            zeros.const_data_ptr<double>(),
            norms.const_data_ptr<double>()};
  }

  void check_constant(const char* name, const Tensor& tensor) const {
    TORCH_CHECK_TYPE(tensor.scalar_type() == at::kDouble, op, ": ", name, " must be float64, got ",
                     tensor.scalar_type(), "; convert it with .double()");
    check_real(op, name, tensor, 2);
    TORCH_CHECK_VALUE(tensor.device() == d.device(), op, ": ", name, " is on ", tensor.device(),
                      " but distances is on ", d.device(), "; move one of them with .to()");
  }

  void check_cotangent(const Tensor& g) const {
    check_real(op, "g", g, 2);
    check_like(op, "g", g, "distances", d);
    check_size(op, "g", g, 0, edges);
    check_size(op, "g", g, 1, functions);
  }

  // A function costs as much as moving so many numbers.
  int threads() const { return threads_for(16 * edges * functions); }
};

// d [E], zeros [L, R], norms [L, R] -> [E, L R]
Tensor spherical_radial(const Tensor& distances, const Tensor& zeros, const Tensor& norms,
                        double cutoff, int64_t exponent) {
  const Arguments in("spherical_radial", distances, zeros, norms, cutoff, exponent);
  const c10::DeviceGuard guard(in.d.device());
  const Tensor y = empty_result({in.edges, in.functions}, in.d.options());
  with_real(in.d, [&](auto zero) {
    using T = decltype(zero);
    const T* d = in.d.const_data_ptr<T>();
    T* out = y.mutable_data_ptr<T>();
#ifdef MOLKERN_HAS_CUDA_KERNELS
    if (on_cuda(in.d))
      return spherical_radial_cuda<T>(in.form, d, out, in.edges, current_stream(in.d));
#endif
    with_isa(
        [&](auto isa) { spherical_radial_cpu<isa(), T>(in.form, d, out, in.edges, in.threads()); });
  });
  return y;
}

// g [E, L R] -> gd [E]
Tensor spherical_radial_grad(const Tensor& g_in, const Tensor& distances, const Tensor& zeros,
                             const Tensor& norms, double cutoff, int64_t exponent) {
  const Arguments in("spherical_radial_grad", distances, zeros, norms, cutoff, exponent);
  in.check_cotangent(g_in);
  const c10::DeviceGuard guard(in.d.device());
  const Tensor gd = empty_result({in.edges}, in.d.options());
  with_real(in.d, [&](auto zero) {
    using T = decltype(zero);
    const T *g = g_in.const_data_ptr<T>(), *d = in.d.const_data_ptr<T>();
    T* out = gd.mutable_data_ptr<T>();
#ifdef MOLKERN_HAS_CUDA_KERNELS
    if (on_cuda(in.d))
      return spherical_radial_grad_cuda<T>(in.form, g, d, out, in.edges, current_stream(in.d));
#endif
    with_isa([&](auto isa) {
      spherical_radial_grad_cpu<isa(), T>(in.form, g, d, out, in.edges, in.threads());
    });
  });
  return gd;
}

// hd [E], g [E, L R] -> tg [E, L R], td [E]
std::tuple<Tensor, Tensor> spherical_radial_hvp(const Tensor& hd_in, const Tensor& g_in,
                                                const Tensor& distances, const Tensor& zeros,
                                                const Tensor& norms, double cutoff,
                                                int64_t exponent) {
  const Arguments in("spherical_radial_hvp", distances, zeros, norms, cutoff, exponent);
  in.check_cotangent(g_in);
  check_real(in.op, "hd", hd_in, 1);
  check_like(in.op, "hd", hd_in, "distances", in.d);
  check_size(in.op, "hd", hd_in, 0, in.edges);
  const c10::DeviceGuard guard(in.d.device());
  const Tensor tg = empty_result({in.edges, in.functions}, in.d.options());
  const Tensor td = empty_result({in.edges}, in.d.options());
  with_real(in.d, [&](auto zero) {
    using T = decltype(zero);
    const T *hd = hd_in.const_data_ptr<T>(), *g = g_in.const_data_ptr<T>();
    const T* d = in.d.const_data_ptr<T>();
    T *out_g = tg.mutable_data_ptr<T>(), *out_d = td.mutable_data_ptr<T>();
#ifdef MOLKERN_HAS_CUDA_KERNELS
    if (on_cuda(in.d))
      return spherical_radial_hvp_cuda<T>(in.form, hd, g, d, out_g, out_d, in.edges,
                                          current_stream(in.d));
#endif
    with_isa([&](auto isa) {
      spherical_radial_hvp_cpu<isa(), T>(in.form, hd, g, d, out_g, out_d, in.edges, in.threads());
    });
  });
  return {tg, td};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(molkern, library) {
  library.def(
      "spherical_radial(Tensor d, Tensor zeros, Tensor norms, float cutoff, int exponent) -> "
      "Tensor");
  library.def(
      "spherical_radial_grad(Tensor g, Tensor d, Tensor zeros, Tensor norms, float cutoff, "
      "int exponent) -> Tensor");
  library.def(
      "spherical_radial_hvp(Tensor hd, Tensor g, Tensor d, Tensor zeros, Tensor norms, "
      "float cutoff, int exponent) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(molkern, CPU, library) {
  library.impl("spherical_radial", any_layout<spherical_radial>);
  library.impl("spherical_radial_grad", any_layout<spherical_radial_grad>);
  library.impl("spherical_radial_hvp", any_layout<spherical_radial_hvp>);
}

#ifdef MOLKERN_WITH_CUDA
TORCH_LIBRARY_IMPL(molkern, CUDA, library) {
  library.impl("spherical_radial", any_layout<spherical_radial>);
  library.impl("spherical_radial_grad", any_layout<spherical_radial_grad>);
  library.impl("spherical_radial_hvp", any_layout<spherical_radial_hvp>);
}
#endif

}  // namespace molkern
