// Uniform B-splines: where a distance lies between knots, and the weights of the coefficients
// there.
//
//   w_f(d) = sum_k b_k(u) C[m + k, f],   t = (d - start) / h,  m = floor(t),  u = t - m,
//
// with k = 0 ... degree and h = (stop - start) / intervals. Degree 3 has two continuous
// derivatives, degree 5 four. The weights follow from those of the degree below (de Boor, J.
// Approx. Theory 6, 50 (1972)): b_k^p = ((u + p - k) b_{k-1}^{p-1} + (k + 1 - u) b_k^{p-1}) / p,
// and their slopes by t are b_{k-1}^{p-1} - b_k^{p-1}.
//
// Outside: below `start` the value at `start`, from `stop` on zero or the value at `stop`; there
// derivatives are zero.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace molkern {

template <typename T>
struct SplineGrid {
  T start;
  T stop;
  T per_length;  // 1 / h
  int32_t intervals;
  bool zero_beyond;  // zero from `stop` on, or the value there
};

// The weights of degree + 1 coefficients from row `first` on, and their derivatives by distance.
template <int degree, int derivatives, typename T>
struct SplineWeights {
  int32_t first;
  T weight[derivatives + 1][degree + 1];
};

// Whether the spline and all its derivatives are zero there.
template <typename T>
MOLKERN_INLINE bool spline_is_zero(const SplineGrid<T>& grid, T d) {
  return grid.zero_beyond && d >= grid.stop;
}

// The interval that a distance belongs to; a NaN to the first.
template <typename T>
MOLKERN_INLINE int32_t spline_interval(const SplineGrid<T>& grid, T d) {
  const T t = (d - grid.start) * grid.per_length;
  if (!(t > T(0))) return 0;
  return t < T(grid.intervals) ? static_cast<int32_t>(t) : grid.intervals - 1;
}

namespace spline_math {

// From weights of degree p - 1 to those of degree p, in place.
template <int p, typename T>
MOLKERN_INLINE void raise_degree(T u, T* b) {
  constexpr T part = T(1) / T(p);
  b[p] = u * part * b[p - 1];
  for (int k = p - 1; k > 0; --k) b[k] = ((u + T(p - k)) * b[k - 1] + (T(k + 1) - u) * b[k]) * part;
  b[0] = (T(1) - u) * part * b[0];
}

// b <- differences of weights of degree p - 1, which are the slopes of those of degree p.
template <int p, typename T>
MOLKERN_INLINE void differences(const T* b, T scale, T* slope) {
  slope[p] = b[p - 1] * scale;
  for (int k = p - 1; k > 0; --k) slope[k] = (b[k - 1] - b[k]) * scale;
  slope[0] = -b[0] * scale;
}

template <int p, typename T>
MOLKERN_INLINE void weights_of_degree(T u, T* b) {
  if constexpr (p == 0) {
    b[0] = T(1);
  } else {
    weights_of_degree<p - 1>(u, b);
    raise_degree<p>(u, b);
  }
}

}  // namespace spline_math

// The weights at distance d, which must belong to interval `interval` but for rounding.
template <int degree, int derivatives, typename T>
MOLKERN_INLINE SplineWeights<degree, derivatives, T> spline_weights(const SplineGrid<T>& grid, T d,
                                                                    int32_t interval) {
  using namespace spline_math;
  SplineWeights<degree, derivatives, T> result;
  result.first = interval;
  T u = (d - grid.start) * grid.per_length - T(interval);
  T inside = grid.per_length;
  if (d < grid.start) u = T(0), inside = T(0);
  if (d >= grid.stop) {
    u = T(1), inside = T(0);
    if (grid.zero_beyond) {
      for (int n = 0; n <= derivatives; ++n)
        for (int k = 0; k <= degree; ++k) result.weight[n][k] = T(0);
      return result;
    }
  }
  T b[degree + 1];
  if constexpr (derivatives >= 2) {
    weights_of_degree<degree - 2>(u, b);
    T slope[degree + 1];
    differences<degree - 1>(b, inside, slope);
    differences<degree>(slope, inside, result.weight[2]);
    raise_degree<degree - 1>(u, b);
  } else {
    weights_of_degree<degree - 1>(u, b);
  }
  if constexpr (derivatives >= 1) differences<degree>(b, inside, result.weight[1]);
  raise_degree<degree>(u, b);
  for (int k = 0; k <= degree; ++k) result.weight[0][k] = b[k];
  return result;
}

}  // namespace molkern
