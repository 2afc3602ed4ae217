// The formulas of spherical.h and their derivatives, for CPU vectors and CUDA threads alike. V is a
// double or a vector of them.
//
// With a = z x the function is norm z u(x) h(a), h(a) = j_l(a) / a. Neither u nor, for l >= 1, h
// and their derivatives have a pole at 0, so nothing cancels at short range.
#pragma once

#include "common/vector_math.h"
#include "radial/radial_math.h"
#include "spherical/spherical.h"

namespace molkern {

// j_l(a) and j_{l+1}(a) come from sine and cosine by the upward recurrence where a is not far below
// l + 1, where it is stable, and from the power series elsewhere. At 0.9 (l + 1) neither loses more
// than 2e-14 for l < 16, and 10 + l terms are good to the last place.
MOLKERN_INLINE double series_limit(int l) { return 0.9 * (l + 1); }
MOLKERN_INLINE constexpr int series_terms(int l) { return 10 + l; }

// Row l has the coefficients c_k = (-1/2)^k / (k! (2l+2k+1)!!) of j_l(a) = a^l sum_k c_k a^(2k).
constexpr int series_columns = series_terms(most_spherical_orders - 1) + 1;
constexpr int series_rows = most_spherical_orders + 1;

struct SeriesTable {
  double rows[series_rows][series_columns];
};

MOLKERN_INLINE double series_coefficient(int l, int k) {
  double denominator = 1;
  for (int i = 1; i <= k; ++i) denominator *= -2.0 * i;
  for (int i = 3; i <= 2 * (l + k) + 1; i += 2) denominator *= i;
  return 1 / denominator;
}

// j_l(a) / a^l, with q = a^2
template <typename V>
MOLKERN_INLINE V series_sum(const double* row, int terms, V q) {
  V sum = splat<V>(row[terms]);
  for (int k = terms - 1; k >= 0; --k) sum = sum * q + row[k];
  return sum;
}

// What the functions of one edge share; derivatives of u are by x.
template <typename V>
struct SphericalEdge {
  V x, inverse_x;  // the latter 0 where x < 1e-10
  RadialJet<V> u;
};

template <typename V>
MOLKERN_INLINE SphericalEdge<V> spherical_edge(double cutoff, int exponent, V d) {
  const auto outside = d >= cutoff;
  d = outside ? splat<V>(cutoff) : d;
  const V x = d / cutoff, t = (cutoff - d) / cutoff;
  const RadialJet<V> u = envelope_cutoff(x, t, exponent, 1.0);
  // Not a product with 0 or 1: NaN distances stay NaN.
  return {x,
          x < 1e-10 ? V{} : 1.0 / x,
          {outside ? V{} : u.value, outside ? V{} : u.first, outside ? V{} : u.second}};
}

// h by the series. `inverse` is 1 / a or 0, and needed for l = 0 alone.
template <int derivatives, typename V>
MOLKERN_INLINE RadialJet<V> bessel_series(const SeriesTable& table, int l, V a, V inverse) {
  const V q = a * a, p = series_sum(table.rows[l], series_terms(l), q);
  // a^(l-1) and a^l, and the derivatives of the former
  V power, next, first, second;
  if (l == 0) {
    power = inverse;
    next = inverse * a;  // 1, or 0 where all shall be 0
    first = -inverse * inverse;
    second = 2.0 * inverse * inverse * inverse;
  } else {
    power = splat<V>(1);
    first = second = V{};
    for (int i = 1; i < l; ++i) {
      second = second * a + 2.0 * first;
      first = first * a + power;
      power = power * a;
    }
    next = power * a;
  }
  if constexpr (derivatives == 0) return {power * p, V{}, V{}};
  // With r = j_{l+1}(a) / a^(l+1): p' = -a r, and a r' = p - (2l+3) r
  const V r = series_sum(table.rows[l + 1], series_terms(l), q);
  return {power * p, first * p - next * r, second * p + power * (4.0 * r - p)};
}

// h by the recurrence.
template <int derivatives, typename V>
MOLKERN_INLINE RadialJet<V> bessel_recurrence(int l, V a, V inverse) {
  V low, high;  // sin(a), cos(a), then j_k(a), j_{k+1}(a)
  sine_cosine(a, &low, &high);
  low = low * inverse;
  high = (low - high) * inverse;
  for (int k = 1; k <= l; ++k) {
    const V next = ((2 * k + 1) * inverse) * high - low;
    low = high;
    high = next;
  }
  const V h = low * inverse;
  if constexpr (derivatives == 0) return {h, V{}, V{}};
  const V square = inverse * inverse;
  return {h, ((l - 1.0) * h - high) * inverse,
          ((l - 1.0) * (l - 2.0) * square - 1.0) * h + 4.0 * (square * high)};
}

// h(a) = j_l(a) / a and `derivatives` derivatives of it. The least and the largest a of the vector
// spare a path that no lane needs.
template <int derivatives, typename V>
MOLKERN_INLINE RadialJet<V> bessel_jet(const SeriesTable& table, int l, V a, V inverse,
                                       double least, double largest) {
  const double limit = series_limit(l);
  if (largest < limit) return bessel_series<derivatives>(table, l, a, inverse);
  const RadialJet<V> far = bessel_recurrence<derivatives>(l, a, inverse);
  if (!(least < limit)) return far;
  const RadialJet<V> near = bessel_series<derivatives>(table, l, a, inverse);
  const auto choice = a < limit;
  return {choice ? near.value : far.value, choice ? near.first : far.first,
          choice ? near.second : far.second};
}

// y and its derivatives by x, without the factor norm z.
template <int derivatives, typename V>
MOLKERN_INLINE RadialJet<V> spherical_jet(const SeriesTable& table, const SphericalEdge<V>& edge,
                                          int l, double z, double least, double largest) {
  const RadialJet<V> h = bessel_jet<derivatives>(
      table, l, V(z * edge.x), V(edge.inverse_x * (1 / z)), z * least, z * largest);
  const RadialJet<V>& u = edge.u;
  return {u.value * h.value, u.first * h.value + z * u.value * h.first,
          u.second * h.value + (2 * z) * u.first * h.first + (z * z) * u.value * h.second};
}

}  // namespace molkern
