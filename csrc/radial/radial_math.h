// The formulas of radial.h and their derivatives, for CPU vectors and CUDA threads alike. V is a
// float, a double or a vector of them.
//
// The basis functions depend on the distance through a coordinate z(d): d itself (gaussian),
// exp(-alpha d) (exponential, which is a gaussian of that coordinate), d / cutoff (bessel). What
// belongs to the edge alone, the cutoff function above all, is computed once per edge; what depends
// on the edge and the basis function is a few products of it with b and its derivatives by z, p, q.
#pragma once

#include "common/vector_math.h"
#include "radial/radial.h"

namespace molkern {

// RadialForm in the numbers of the kernel.
template <typename T>
struct RadialConstants {
  RadialBasis basis;
  CutoffFunction cutoff_function;
  T cutoff;
  T inverse_cutoff;
  T alpha;
  int exponent;
};

template <typename T>
RadialConstants<T> radial_constants(const RadialForm& form) {
  // PhysNet's polynomial is the envelope of exponent 3.
  const bool physnet = form.cutoff_function == CutoffFunction::physnet;
  return {form.basis,     physnet ? CutoffFunction::envelope : form.cutoff_function,
          T(form.cutoff), T(1 / form.cutoff),
          T(form.alpha),  physnet ? 3 : form.exponent};
}

// All that y = c(d) b(z(d); p, q) and its derivatives by d need of the edge:
//   y_d  = c_d b + c_z b_z
//   y_dd = c_dd b + c_dz b_z + c_zz b_zz
template <typename V>
struct RadialEdge {
  V z;
  V inverse_z;  // of bessel: 1 / z, or 0 where z is so small that sin(p z) / z is p
  V near_zero;  // of bessel: 1 there, 0 elsewhere
  V c, c_d, c_z, c_dd, c_dz, c_zz;
};

template <typename V>
struct RadialGradient {
  V b, b_z, b_p, b_q;
};

template <typename V>
struct RadialHessian {
  V b, b_z, b_p, b_q, b_zz, b_zp, b_zq, b_pp, b_pq, b_qq;
};

// A function of the distance and its first two derivatives.
template <typename V>
struct RadialJet {
  V value, first, second;
};

// (cos(pi x) + 1) / 2 = sin^2(pi t / 2) with t = 1 - x, exact to the last place where it vanishes.
template <typename V, typename T>
MOLKERN_INLINE RadialJet<V> cosine_cutoff(V t, T inverse_cutoff) {
  constexpr double pi = 3.14159265358979323846;
  const T scale = T(pi) * inverse_cutoff;
  V s, c;
  sine_cosine(V(t * T(pi / 2)), &s, &c);
  return {s * s, -scale * (s * c), (T(0.5) * scale * scale) * (T(1) - T(2) * (s * s))};
}

// The envelope vanishes threefold at x = 1: it is t^3 (1 + 3 x + 6 x^2 + ... + n(n+1)/2 x^(n-1)),
// which loses no digits there.
template <typename V, typename T>
MOLKERN_INLINE RadialJet<V> envelope_cutoff(V x, V t, int n, T inverse_cutoff) {
  V sum = V{}, low = splat<V>(T(1));
  for (int j = n; j >= 1; --j) sum = sum * x + T(0.5) * T(j) * T(j + 1);
  for (int j = 3; j <= n; ++j) low = low * x;        // x^(n - 2), for n = 1 not read
  const V high = n == 1 ? splat<V>(T(1)) : low * x;  // x^(n - 1)
  const T scale = T(0.5) * T(n) * T(n + 1) * T(n + 2) * inverse_cutoff;
  return {t * t * t * sum, -scale * (high * t * t),
          (scale * inverse_cutoff) * (t * (T(2) * high - T(n - 1) * (t * low)))};
}

template <typename V, typename T>
MOLKERN_INLINE RadialJet<V> cutoff_jet(const RadialConstants<T>& form, V d) {
  const V x = d * form.inverse_cutoff, t = (form.cutoff - d) * form.inverse_cutoff;
  if (form.cutoff_function == CutoffFunction::none) return {splat<V>(T(1)), V{}, V{}};
  const RadialJet<V> jet = form.cutoff_function == CutoffFunction::cosine
                               ? cosine_cutoff(t, form.inverse_cutoff)
                               : envelope_cutoff(x, t, form.exponent, form.inverse_cutoff);
  // Not a product with 0 or 1: NaN distances stay NaN.
  const auto outside = d >= form.cutoff;
  return {outside ? V{} : jet.value, outside ? V{} : jet.first, outside ? V{} : jet.second};
}

template <typename V, typename T>
MOLKERN_INLINE RadialEdge<V> radial_edge(const RadialConstants<T>& form, V d) {
  // Far beyond the cutoff nothing may overflow, for infinity times 0 is NaN.
  if (form.cutoff_function != CutoffFunction::none) d = d > form.cutoff ? splat<V>(form.cutoff) : d;
  const RadialJet<V> c = cutoff_jet(form, d);
  RadialJet<V> z{d, splat<V>(T(1)), V{}};
  RadialEdge<V> edge;
  edge.inverse_z = edge.near_zero = V{};
  if (form.basis == RadialBasis::exponential) {
    z.value = exponential(V(-form.alpha * d));
    z.first = -form.alpha * z.value;
    z.second = (form.alpha * form.alpha) * z.value;
  } else if (form.basis == RadialBasis::bessel) {
    z.value = d * form.inverse_cutoff;
    z.first = splat<V>(form.inverse_cutoff);
    const auto tiny = (z.value < T(1e-15)) & (z.value > T(-1e-15));
    edge.near_zero = tiny ? splat<V>(T(1)) : V{};
    edge.inverse_z = tiny ? V{} : T(1) / z.value;
  }
  edge.z = z.value;
  edge.c = c.value;
  edge.c_d = c.first;
  edge.c_z = c.value * z.first;
  edge.c_dd = c.second;
  edge.c_dz = T(2) * c.first * z.first + c.value * z.second;
  edge.c_zz = c.value * z.first * z.first;
  return edge;
}

// b alone. The exponential basis has the formulas of the gaussian.
template <RadialBasis basis, typename V>
MOLKERN_INLINE V radial_value(const RadialEdge<V>& edge, V p, V q) {
  if constexpr (basis == RadialBasis::bessel) {
    V s, c;
    sine_cosine(V(p * edge.z), &s, &c);
    return s * edge.inverse_z + p * edge.near_zero;
  } else {
    const V u = edge.z - p;
    return exponential(V(-(q * u) * u));
  }
}

// With S(a) = sin(a) / a and a = p z, the bessel function is p S(a), its derivative by z is
// p^3 z (S'(a) / a). Returns p^3 S'(a) / a, by its Taylor series where the closed form
// (cos(a) - S(a)) / a^2 loses digits.
template <typename V>
MOLKERN_INLINE V bessel_slope(const RadialEdge<V>& edge, V p, V b, V cosine) {
  using T = Scalar<V>;
  const V a = p * edge.z, a2 = a * a;
  V series;
  if constexpr (sizeof(T) == 4)
    series = horner(a2, -1.0 / 3, 1.0 / 30, -1.0 / 840, 1.0 / 45360, -1.0 / 3991680);
  else
    series =
        horner(a2, -1.0 / 3, 1.0 / 30, -1.0 / 840, 1.0 / 45360, -1.0 / 3991680, 1.0 / 518918400,
               -1.0 / 93405312000, 1.0 / 22230464256000, -1.0 / 6758061133824000);
  const V closed = (p * cosine - b) * edge.inverse_z * edge.inverse_z;
  return a2 < T(1) ? p * p * p * series : closed;
}

// b and its first derivatives by the coordinate and the parameters.
template <RadialBasis basis, typename V>
MOLKERN_INLINE RadialGradient<V> radial_gradient(const RadialEdge<V>& edge, V p, V q) {
  using T = Scalar<V>;
  if constexpr (basis == RadialBasis::bessel) {
    V s, c;
    sine_cosine(V(p * edge.z), &s, &c);
    const V b = s * edge.inverse_z + p * edge.near_zero;
    return {b, edge.z * bessel_slope(edge, p, b, c), c, V{}};
  } else {
    V u = edge.z - p;
    const V b = exponential(V(-(q * u) * u));
    u = b == T(0) ? V{} : u;  // u^2 may overflow where b is 0
    const V slope = T(2) * (q * u) * b;
    return {b, -slope, slope, -(u * u) * b};
  }
}

template <RadialBasis basis, typename V>
MOLKERN_INLINE RadialHessian<V> radial_hessian(const RadialEdge<V>& edge, V p, V q) {
  using T = Scalar<V>;
  if constexpr (basis == RadialBasis::bessel) {
    V s, c;
    sine_cosine(V(p * edge.z), &s, &c);
    const V b = s * edge.inverse_z + p * edge.near_zero, slope = bessel_slope(edge, p, b, c);
    return {b,   edge.z * slope, c,   V{}, -p * p * b - T(2) * slope, -p * s,
            V{}, -edge.z * s,    V{}, V{}};
  } else {
    V u = edge.z - p;
    const V b = exponential(V(-(q * u) * u));
    u = b == T(0) ? V{} : u;  // u^2 may overflow where b is 0
    const V w = q * u, u2 = u * u, slope = T(2) * w * b;
    const V bend = T(2) * (T(2) * w * w - q) * b, cross = T(2) * u * (w * u - T(1)) * b;
    return {b, -slope, slope, -u2 * b, bend, -bend, cross, bend, -cross, u2 * u2 * b};
  }
}

// The terms of y and its derivatives, differentiated in the direction h, of one edge and vector.
template <typename V>
struct RadialProduct {
  V y, y_d, y_p, y_q;
};

// Along hd alone.
template <typename V>
MOLKERN_INLINE RadialProduct<V> product_along_d(const RadialEdge<V>& edge,
                                                const RadialHessian<V>& f, V hd) {
  return {hd * (edge.c_d * f.b + edge.c_z * f.b_z),
          hd * (edge.c_dd * f.b + edge.c_dz * f.b_z + edge.c_zz * f.b_zz),
          hd * (edge.c_d * f.b_p + edge.c_z * f.b_zp), hd * (edge.c_d * f.b_q + edge.c_z * f.b_zq)};
}

// Along hp and hq.
template <typename V>
MOLKERN_INLINE RadialProduct<V> product_along_pq(const RadialEdge<V>& edge,
                                                 const RadialHessian<V>& f, V hp, V hq) {
  const V along = hp * f.b_p + hq * f.b_q;
  return {edge.c * along, edge.c_d * along + edge.c_z * (hp * f.b_zp + hq * f.b_zq),
          edge.c * (hp * f.b_pp + hq * f.b_pq), edge.c * (hp * f.b_pq + hq * f.b_qq)};
}

// Calls function(basis) with a constant; the exponential basis has the formulas of the gaussian.
template <typename Function>
void with_formulas(RadialBasis basis, Function&& function) {
  if (basis == RadialBasis::bessel)
    function(std::integral_constant<RadialBasis, RadialBasis::bessel>{});
  else
    function(std::integral_constant<RadialBasis, RadialBasis::gaussian>{});
}

}  // namespace molkern
