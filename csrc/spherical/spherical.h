// The radial part of DimeNet's spherical basis (Klicpera et al., ICLR 2020, eq. 6 with the envelope
// of eq. 8): spherical Bessel functions fused with their envelope.
//
//   y[e, l R + n] = norm[l, n] u(x) / x  j_l(z[l, n] x),   x = d[e] / cutoff, 0 for x >= 1
//   u(x) = 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2),   p = exponent
//
// z[l, n] is a zero of j_l, norm a factor, both constants in float64. Everything is evaluated in
// float64 and rounded once, for the closed forms of j_l lose all digits of float32 at short range.
//
// As d goes to 0 the function of order 0 grows like 1 / x, order 1 tends to norm z / 3, the others
// to 0. Where x < 1e-10 (atoms on top of each other) order 0 is 0 with its derivatives, so that
// nothing there is infinite or NaN.
//
// With s = <g, y>, the three kernels are the value y, the gradient of s by d, and the derivative of
// <hd, gradient> by g and by d. No two edges meet: no sum depends on threads.
//
// Cost: the value writes E L R numbers, the gradient reads as many, the product does both; per
// number one sine and cosine and l steps of a recurrence, or a series of 10 + l terms.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/stream.h"

namespace molkern {

struct SphericalForm {
  double cutoff;
  int exponent;         // p of the envelope
  int orders;           // L, at most most_spherical_orders
  int radial;           // R
  const double* zeros;  // [L, R]
  const double* norms;  // [L, R]
};

// The recurrence and the series, and where one follows the other, were checked up to here.
constexpr int most_spherical_orders = 16;

template <Isa isa, typename T>
void spherical_radial_cpu(const SphericalForm& form,
                          const T* d,  // [E]
                          T* y,        // [E, L R]
                          int64_t edges, int threads);

template <Isa isa, typename T>
void spherical_radial_grad_cpu(const SphericalForm& form,
                               const T* g,  // [E, L R]
                               const T* d,
                               T* gd,  // [E]
                               int64_t edges, int threads);

template <Isa isa, typename T>
void spherical_radial_hvp_cpu(const SphericalForm& form,
                              const T* hd,  // [E]
                              const T* g, const T* d,
                              T* tg,  // [E, L R]  derivative of <hd, gradient> by g
                              T* td,  // [E]       by d
                              int64_t edges, int threads);

template <typename T>
void spherical_radial_cuda(const SphericalForm& form, const T* d, T* y, int64_t edges,
                           Stream stream);

template <typename T>
void spherical_radial_grad_cuda(const SphericalForm& form, const T* g, const T* d, T* gd,
                                int64_t edges, Stream stream);

template <typename T>
void spherical_radial_hvp_cuda(const SphericalForm& form, const T* hd, const T* g, const T* d,
                               T* tg, T* td, int64_t edges, Stream stream);

}  // namespace molkern
