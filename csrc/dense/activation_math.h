// Activation functions and their slopes, for a value V that is a number or a vector of them; the
// formulas are in dense.h. NaN stays NaN.
#pragma once

#include "common/vector_math.h"
#include "dense/dense.h"

namespace molkern {

template <typename V>
struct ValueSlope {
  V value;
  V slope;
};

namespace vector_math {

template <typename V>
MOLKERN_INLINE V absolute(V x) {
  constexpr auto sign = typename VectorTraits<V>::Int(1) << (sizeof(Scalar<V>) * 8 - 1);
  return from_bits<V>(to_bits(x) & ~sign);
}

// With the sign of another number.
template <typename V>
MOLKERN_INLINE V with_sign(V magnitude, V x) {
  constexpr auto sign = typename VectorTraits<V>::Int(1) << (sizeof(Scalar<V>) * 8 - 1);
  return from_bits<V>(to_bits(magnitude) | (to_bits(x) & sign));
}

// (atanh(s) - s) / s^3 as a function of s^2, for |s| <= 1 / 3
template <typename V>
MOLKERN_INLINE V atanh_tail(V s2) {
  if constexpr (sizeof(Scalar<V>) == 4)
    return horner(s2, 0.333333201682942761, 0.200037803345559844, 0.141183095369395924,
                  0.134257516577374264);
  else
    return horner(s2, 0.333333333333333293, 0.200000000000072914, 0.142857142835543601,
                  0.111111113587158005, 0.0909089471797242324, 0.0769278503511847426,
                  0.0665707206154139056, 0.0600053681660791135, 0.0440036713906676591,
                  0.0808202726861765293);
}

}  // namespace vector_math

template <typename V>
MOLKERN_INLINE ValueSlope<V> silu(V z) {
  using T = Scalar<V>;
  const V sigma = T(1) / (T(1) + exponential(V(-z)));
  return {z * sigma, sigma * (T(1) + z * (T(1) - sigma))};
}

// ln((1 + e) / 2) = 2 atanh((e - 1) / (e + 3)) with e = exp(-|z|): s stays within 1 / 3, and
// nothing is left to subtract.
template <typename V>
MOLKERN_INLINE ValueSlope<V> shifted_softplus(V z) {
  using T = Scalar<V>;
  const V e = exponential(V(-vector_math::absolute(z)));
  const V s = (e - T(1)) / (e + T(3));
  const V s2 = s * s;
  const V half = vector_math::atanh_tail(s2) * s2 * s + s;
  const V value = (z < T(0) ? V{} : z) + T(2) * half;
  const V sigma = (z < T(0) ? e : splat<V>(T(1))) / (T(1) + e);
  const V slope = z == z ? sigma : z;
  constexpr T log_2 = T(0.69314718055994530942);
  return {z > T(20) ? V(z - log_2) : value, z > T(20) ? splat<V>(T(1)) : slope};
}

// With e = exp(x), x = -2 |z|, and u = e - 1: |tanh| = -u / (2 + u), and its slope is 4 e / (2 +
// u)^2. As in exponential, e = 2^k exp(r); u = 2^k (exp(r) - 1) + (2^k - 1), where the last is
// exact.
template <typename V>
MOLKERN_INLINE ValueSlope<V> hyperbolic_tangent(V z) {
  using T = Scalar<V>;
  using namespace vector_math;
  constexpr bool single = sizeof(T) == 4;
  constexpr T smallest = single ? T(-87) : T(-708);  // below it the slope is zero
  constexpr T log2_high = single ? T(0.693145751953125) : T(0.69314718055989033019);
  constexpr T log2_low = single ? T(1.4286068203094172e-6) : T(5.4979230187083711747e-14);
  const V exact = T(-2) * absolute(z);
  const V x = exact < smallest ? splat<V>(smallest) : exact;
  const V shifted = x * T(1.4426950408889634074) + round_shift<T>;
  const V k = shifted - round_shift<T>;
  const V r = (x - k * log2_high) - k * log2_low;
  const V change = exp_tail(r) * (r * r) + r;
  const V power = from_bits<V>(to_bits(splat<V>(T(1))) + (to_bits(shifted) << mantissa_bits<T>));
  const V u = power * change + (power - T(1));
  const V inverse = T(1) / (T(2) + u);
  const V e = exact < smallest ? V{} : V(power * change + power);
  return {with_sign(V(-u * inverse), z), (T(4) * inverse) * inverse * e};
}

template <Activation activation, typename V>
MOLKERN_INLINE ValueSlope<V> activate(V z) {
  if constexpr (activation == Activation::silu)
    return silu(z);
  else if constexpr (activation == Activation::ssp)
    return shifted_softplus(z);
  else if constexpr (activation == Activation::tanh)
    return hyperbolic_tangent(z);
  else
    return {z, splat<V>(Scalar<V>(1))};
}

}  // namespace molkern
