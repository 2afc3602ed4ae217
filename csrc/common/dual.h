// Dual numbers: a value and its derivative along one direction. A formula written for a number N,
// be it a float, a vector of them or a dual of either, gives its directional derivative when N is
// dual; so a kernel for a gradient is also one for a Hessian-vector product.
#pragma once

#include <cmath>

#include "common/vector.h"

namespace molkern {

template <typename V>
struct Dual {
  V value, slope;
};

template <typename N>
struct NumberTraits {  // not dual
  using Value = N;
  static constexpr bool dual = false;
};
template <typename V>
struct NumberTraits<Dual<V>> {
  using Value = V;
  static constexpr bool dual = true;
};
// The float, double or vector that N holds.
template <typename N>
using ValueOf = typename NumberTraits<N>::Value;

template <typename V>
MOLKERN_INLINE Dual<V> operator+(Dual<V> a, Dual<V> b) {
  return {a.value + b.value, a.slope + b.slope};
}
template <typename V>
MOLKERN_INLINE Dual<V> operator-(Dual<V> a, Dual<V> b) {
  return {a.value - b.value, a.slope - b.slope};
}
template <typename V>
MOLKERN_INLINE Dual<V> operator-(Dual<V> a) {
  return {-a.value, -a.slope};
}
template <typename V>
MOLKERN_INLINE Dual<V> operator*(Dual<V> a, Dual<V> b) {
  return {a.value * b.value, a.slope * b.value + a.value * b.slope};
}
// With a number that does not depend on the direction.
template <typename V>
MOLKERN_INLINE Dual<V> operator*(Dual<V> a, V b) {
  return {a.value * b, a.slope * b};
}
template <typename V>
MOLKERN_INLINE Dual<V> operator*(V a, Dual<V> b) {
  return b * a;
}
template <typename V>
MOLKERN_INLINE Dual<V>& operator+=(Dual<V>& a, Dual<V> b) {
  return a = a + b;
}
template <typename V>
MOLKERN_INLINE Dual<V>& operator-=(Dual<V>& a, Dual<V> b) {
  return a = a - b;
}

// What a kernel gives for N: the number itself, or the derivative.
template <typename V>
MOLKERN_INLINE V result_of(V x) {
  return x;
}
template <typename V>
MOLKERN_INLINE V result_of(Dual<V> x) {
  return x.slope;
}

// The same number in every lane, without slope.
template <typename N>
MOLKERN_INLINE N constant(Scalar<ValueOf<N>> x) {
  if constexpr (NumberTraits<N>::dual)
    return {splat<ValueOf<N>>(x), ValueOf<N>{}};
  else
    return splat<N>(x);
}

}  // namespace molkern
