// Real spherical harmonics of unit vectors, scaled so that sum over m of Y_lm(u) Y_lm(v) = P_l(u .
// v):
//
//   Y_lm = n_lm Q_lm(z) c_m,   Y_l-m = n_lm Q_lm(z) s_m,   c_m + i s_m = (x + i y)^m,
//   n_lm^2 = 2 (l - m)! / (l + m)! (1 for m = 0),   Q_lm = P_lm / (1 - z^2)^(m/2), a polynomial.
//
// The addition theorem: NIST Digital Library of Mathematical Functions, 14.18.1.
#pragma once

#include <cmath>
#include <vector>

#include "common/dual.h"

namespace molkern {

// The place of Y_lm, m from -l to l, among orders^2 harmonics.
MOLKERN_INLINE int64_t harmonic_place(int64_t l, int64_t m) { return l * l + l + m; }

// n_lm at harmonic_place(l, m), m not negative.
inline std::vector<double> harmonic_norms(int orders) {
  std::vector<double> norms(orders * orders);
  for (int l = 0; l < orders; ++l) {
    double square = 1;
    norms[harmonic_place(l, 0)] = 1;
    for (int m = 1; m <= l; ++m) {
      square /= double(l - m + 1) * double(l + m);  // (l - m)! / (l + m)!
      norms[harmonic_place(l, m)] = std::sqrt(2 * square);
    }
  }
  return norms;
}

// Calls give(place, Y, dY/dx, dY/dy, dY/dz) for all harmonics of orders below `orders`; derivatives
// are those of the formulas above, whose part along the vector has no meaning.
template <typename N, typename Give>
MOLKERN_INLINE void harmonics(N x, N y, N z, int orders, const double* norms, Give&& give) {
  using V = ValueOf<N>;
  using T = Scalar<V>;
  const N zero = constant<N>(0);
  N c = constant<N>(1), s = zero, c_before = zero, s_before = zero;  // of m and m - 1
  T diagonal = 1;                                                    // (2 m - 1)!!
  for (int m = 0; m < orders; ++m) {
    N q = constant<N>(diagonal), q_before = zero, slope = zero, slope_before = zero;
    for (int l = m; l < orders; ++l) {
      const V norm = splat<V>(T(norms[harmonic_place(l, m)]));
      const N nq = q * norm, ns = slope * norm, nqm = nq * splat<V>(T(m));
      give(harmonic_place(l, m), nq * c, nqm * c_before, -(nqm * s_before), ns * c);
      if (m > 0) give(harmonic_place(l, -m), nq * s, nqm * s_before, nqm * c_before, ns * s);
      // (l + 1 - m) Q_{l+1} = (2 l + 1) z Q_l - (l + m) Q_{l-1}
      const V up = splat<V>(T(2 * l + 1) / T(l + 1 - m)), back = splat<V>(T(l + m) / T(l + 1 - m));
      const N q_next = (z * q) * up - q_before * back;
      const N slope_next = (q + z * slope) * up - slope_before * back;
      q_before = q;
      slope_before = slope;
      q = q_next;
      slope = slope_next;
    }
    const N c_next = x * c - y * s, s_next = x * s + y * c;
    c_before = c;
    s_before = s;
    c = c_next;
    s = s_next;
    diagonal *= T(2 * m + 1);
  }
}

}  // namespace molkern
