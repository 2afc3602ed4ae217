// Radial basis functions fused with their cutoff function.
//
//   y[e, k] = c(d[e]) * b(d[e]; p[k], q[k])
//
//   basis           b(d; p, q)                       parameters
//   gaussian        exp(-q (d - p)^2)                p centres, q coefficients 1 / (2 sigma^2)
//   exponential     exp(-q (exp(-alpha d) - p)^2)    p centres, q widths (PhysNet, mlcg)
//   bessel          sin(p x) / x,  x = d / cutoff    p frequencies, q is not used (DimeNet)
//
//   cutoff          c(d), x = d / cutoff, 0 for x >= 1 (but for none)
//   none            1
//   cosine          (cos(pi x) + 1) / 2                                   (Behler)
//   physnet         1 - 6 x^5 + 15 x^4 - 10 x^3                           (Unke & Meuwly, eq. 8)
//   envelope        1 - (n+1)(n+2)/2 x^n + n(n+2) x^(n+1) - n(n+1)/2 x^(n+2),   n = exponent
//                   (Klicpera et al., eq. 8; DimeNet's RBF is envelope times bessel)
//
// With s = <g, y>, the three kernels are the value y, the gradient of s, and the derivative of
// <h, gradient> for a cotangent h = (hd, hp, hq) of the gradient. Derivatives of the parameters are
// sums over all edges, taken in a fixed order: in blocks of edges of a fixed size, then over the
// blocks, so that neither thread count nor device scheduling changes a bit.
//
// Cost: the value writes E * K numbers, the gradient reads as many, the product reads and writes as
// many; one exponential (or sine and cosine) per number and one cutoff function per edge.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/stream.h"

namespace molkern {

enum class RadialBasis : int { gaussian = 0, exponential = 1, bessel = 2 };
enum class CutoffFunction : int { none = 0, cosine = 1, physnet = 2, envelope = 3 };

struct RadialForm {
  RadialBasis basis;
  CutoffFunction cutoff_function;
  double cutoff;
  double alpha;  // of the exponential basis
  int exponent;  // of the envelope
};

template <Isa isa, typename T>
void radial_basis_cpu(const RadialForm& form,
                      const T* d,  // [E]
                      const T* p,  // [K]
                      const T* q,  // [K], null for bessel
                      T* y,        // [E, K]
                      int64_t edges, int64_t functions, int threads);

template <Isa isa, typename T>
void radial_basis_grad_cpu(const RadialForm& form, const T* g,  // [E, K]
                           const T* d, const T* p, const T* q,
                           T* gd,  // [E]
                           T* gp,  // [K] or null
                           T* gq,  // [K] or null
                           int64_t edges, int64_t functions, int threads);

template <Isa isa, typename T>
void radial_basis_hvp_cpu(const RadialForm& form,
                          const T* hd,  // [E] or null
                          const T* hp,  // [K] or null
                          const T* hq,  // [K] or null
                          const T* g,   // [E, K]
                          const T* d, const T* p, const T* q,
                          T* tg,  // [E, K]  derivative of <h, gradient> by g
                          T* td,  // [E]     by d
                          T* tp,  // [K]     by p, or null
                          T* tq,  // [K]     by q, or null
                          int64_t edges, int64_t functions, int threads);

// Numbers of workspace that the CUDA gradient and product need for their parameter sums.
int64_t radial_basis_workspace(int64_t edges, int64_t functions);

template <typename T>
void radial_basis_cuda(const RadialForm& form, const T* d, const T* p, const T* q, T* y,
                       int64_t edges, int64_t functions, Stream stream);

template <typename T>
void radial_basis_grad_cuda(const RadialForm& form, const T* g, const T* d, const T* p, const T* q,
                            T* gd, T* gp, T* gq, T* workspace, int64_t edges, int64_t functions,
                            Stream stream);

template <typename T>
void radial_basis_hvp_cuda(const RadialForm& form, const T* hd, const T* hp, const T* hq,
                           const T* g, const T* d, const T* p, const T* q, T* tg, T* td, T* tp,
                           T* tq, T* workspace, int64_t edges, int64_t functions, Stream stream);

}  // namespace molkern
