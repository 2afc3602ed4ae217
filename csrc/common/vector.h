// Vectors of numbers by GCC's and Clang's vector extension, at the width of the instruction set.
// Formulas are written for a value V that is a float, a double or such a vector: comparisons give a
// mask, and mask ? a : b chooses lane by lane.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/host_device.h"
#include "common/isa.h"

namespace molkern {

template <typename V>
struct VectorTraits {  // of a vector
  using Scalar = std::remove_cv_t<std::remove_reference_t<decltype(V{}[0])>>;
  using Int = std::conditional_t<sizeof(Scalar) == 4, uint32_t, uint64_t>;
  typedef Int Bits __attribute__((vector_size(sizeof(V))));
};
template <>
struct VectorTraits<float> {
  using Scalar = float;
  using Int = uint32_t;
  using Bits = uint32_t;
};
template <>
struct VectorTraits<double> {
  using Scalar = double;
  using Int = uint64_t;
  using Bits = uint64_t;
};

template <typename V>
using Scalar = typename VectorTraits<V>::Scalar;
template <typename V>
using Bits = typename VectorTraits<V>::Bits;

template <typename T, int lanes>
struct VectorOf {
  typedef T type __attribute__((vector_size(sizeof(T) * lanes)));
};
template <typename T, int lanes>
using Vector = typename VectorOf<T, lanes>::type;

// The number in every lane. Not a sum with 0: that would be an addition, for it turns -0 to 0.
template <typename V>
MOLKERN_INLINE V splat(Scalar<V> x) {
  return x - V{};
}

// The lanes of one vector register.
template <Isa isa, typename T>
constexpr int vector_lanes = (isa == Isa::avx512 ? 64
                              : isa == Isa::avx2 ? 32
                                                 : 16) /
                             static_cast<int>(sizeof(T));

template <typename V>
MOLKERN_INLINE V load(const Scalar<V>* from) {
  V x;
  __builtin_memcpy(&x, from, sizeof(V));
  return x;
}

template <typename V>
MOLKERN_INLINE void store(Scalar<V>* to, V x) {
  __builtin_memcpy(to, &x, sizeof(V));
}

// The sum over the lanes, by halves.
template <typename V>
MOLKERN_INLINE Scalar<V> lane_sum(V x) {
  using T = Scalar<V>;
  constexpr int lanes = sizeof(V) / sizeof(T);
  if constexpr (lanes == 2) {
    return x[0] + x[1];
  } else {
    using Half = Vector<T, lanes / 2>;
    Half low, high;
    __builtin_memcpy(&low, &x, sizeof(Half));
    __builtin_memcpy(&high, reinterpret_cast<const char*>(&x) + sizeof(Half), sizeof(Half));
    return lane_sum(Half(low + high));
  }
}

}  // namespace molkern
