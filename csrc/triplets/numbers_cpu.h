// Arrays of numbers N, vectors or dual vectors, for the triplet kernels on the CPU. Everything here
// is a template over the vector type, so that every instruction set has its own.
#pragma once

#include <cmath>
#include <vector>

#include "common/dual.h"

namespace molkern {
namespace {  // every instruction set has its own

template <typename N>
struct SingleOf {
  using type = Scalar<N>;
};
template <typename V>
struct SingleOf<Dual<V>> {
  using type = Dual<Scalar<V>>;
};
// The number in one lane of N.
template <typename N>
using Single = typename SingleOf<N>::type;

template <typename N>
MOLKERN_INLINE N in_every_lane(Single<N> x) {
  if constexpr (NumberTraits<N>::dual)
    return {splat<ValueOf<N>>(x.value), splat<ValueOf<N>>(x.slope)};
  else
    return splat<N>(x);
}

template <typename N>
MOLKERN_INLINE Single<N> sum_of_lanes(N x) {
  if constexpr (NumberTraits<N>::dual)
    return {lane_sum(x.value), lane_sum(x.slope)};
  else
    return lane_sum(x);
}

// 1 / sqrt(x), and 0 where a vector of that square counts as zero.
template <typename V>
MOLKERN_INLINE V inverse_root(V x) {
  if constexpr (std::is_arithmetic_v<V>) {
    return x < smallest_square<V> ? V(0) : V(1) / std::sqrt(x);
  } else {
    using T = Scalar<V>;
    constexpr int lanes = sizeof(V) / sizeof(T);
    T numbers[lanes];
    store<V>(numbers, x);
    for (int i = 0; i < lanes; ++i) numbers[i] = std::sqrt(numbers[i]);
    const V root = load<V>(numbers);
    return x < smallest_square<T> ? V{} : T(1) / root;
  }
}
template <typename V>
MOLKERN_INLINE Dual<V> inverse_root(Dual<V> x) {
  const V root = inverse_root(x.value);
  return {root, (root * root) * (root * x.slope) * Scalar<V>(-0.5)};
}

// The first `count` lanes from memory, zeros after them.
template <typename V>
MOLKERN_INLINE V load_some(const Scalar<V>* from, int64_t count) {
  if (count * sizeof(Scalar<V>) >= sizeof(V)) return load<V>(from);
  V x{};
  __builtin_memcpy(&x, from, count * sizeof(Scalar<V>));
  return x;
}

// Numbers read from outside: values, and slopes where N is dual.
template <typename N>
struct Source {
  using T = Scalar<ValueOf<N>>;
  const T* values;
  const T* slopes;

  MOLKERN_INLINE Single<N> operator[](int64_t i) const {
    if constexpr (NumberTraits<N>::dual)
      return {values[i], slopes[i]};
    else
      return values[i];
  }
  // Numbers i, i + 1, ... in the lanes, of which `count` exist; zeros after them.
  MOLKERN_INLINE N get(int64_t i, int64_t count) const {
    if constexpr (NumberTraits<N>::dual)
      return {load_some<ValueOf<N>>(values + i, count), load_some<ValueOf<N>>(slopes + i, count)};
    else
      return load_some<N>(values + i, count);
  }
};

// Numbers in memory, one plane of values and one of slopes. A view knows where they are and owns
// nothing. Hot loops hold views in local variables: what they store could otherwise be any object's
// pointer, which would have to be read again.
template <typename N>
struct View {
  using V = ValueOf<N>;
  using T = Scalar<V>;
  T* data = nullptr;
  int64_t plane = 0;  // from a value to its slope

  // Numbers i, i + 1, ... in the lanes.
  MOLKERN_INLINE N get(int64_t i) const {
    if constexpr (NumberTraits<N>::dual)
      return {load<V>(data + i), load<V>(data + plane + i)};
    else
      return load<V>(data + i);
  }
  MOLKERN_INLINE void set(int64_t i, N x) const {
    if constexpr (NumberTraits<N>::dual) {
      store<V>(data + i, x.value);
      store<V>(data + plane + i, x.slope);
    } else {
      store<V>(data + i, x);
    }
  }
  // Number i alone.
  MOLKERN_INLINE Single<N> one(int64_t i) const {
    if constexpr (NumberTraits<N>::dual)
      return {data[i], data[plane + i]};
    else
      return data[i];
  }
  MOLKERN_INLINE void set_one(int64_t i, Single<N> x) const {
    if constexpr (NumberTraits<N>::dual) {
      data[i] = x.value;
      data[plane + i] = x.slope;
    } else {
      data[i] = x;
    }
  }
  MOLKERN_INLINE N everywhere(int64_t i) const { return in_every_lane<N>(one(i)); }
  MOLKERN_INLINE void clear(int64_t count) const {
    for (int64_t i = 0; i < count; i += sizeof(V) / sizeof(T)) set(i, N{});
  }
};

// The owner of such numbers, all zero at first; it is a view of them too.
template <typename N>
class Planes : public View<N> {
  using V = ValueOf<N>;
  using T = Scalar<V>;
  static constexpr int64_t lanes = sizeof(V) / sizeof(T);
  std::vector<T> memory_;

 public:
  Planes() = default;
  explicit Planes(int64_t count) {
    this->plane = (count + lanes - 1) / lanes * lanes;
    memory_.resize(this->plane * (NumberTraits<N>::dual ? 2 : 1) + lanes);
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());  // aligned to a vector
    this->data = memory_.data() + (sizeof(V) - address % sizeof(V)) % sizeof(V) / sizeof(T);
  }
  Planes(Planes&&) = default;  // the memory stays where it is
  Planes& operator=(Planes&&) = default;

  View<N> view() const { return *this; }
};

// (2 l + 1) / (l + 1) and l / (l + 1), the factors of the recursion, for every order there may be.
template <typename T>
struct LegendreFactors {
  static constexpr int most_orders = 16;
  T up[most_orders], back[most_orders];
  constexpr LegendreFactors() : up(), back() {
    for (int l = 0; l < most_orders; ++l) {
      up[l] = T(2 * l + 1) / T(l + 1);
      back[l] = T(l) / T(l + 1);
    }
  }
};
template <typename T>
constexpr LegendreFactors<T> legendre_factors{};

// Legendre polynomials P_0(c) ... P_{orders - 1}(c), to give(l, P_l).
template <typename N, typename Give>
MOLKERN_INLINE void legendre(N c, int orders, Give&& give) {
  using V = ValueOf<N>;
  const auto& factors = legendre_factors<Scalar<V>>;
  N before = constant<N>(0), now = constant<N>(1);
  for (int l = 0; l < orders; ++l) {
    give(l, now);
    const N next = (c * now) * splat<V>(factors.up[l]) - before * splat<V>(factors.back[l]);
    before = now;
    now = next;
  }
}

// And their derivatives, to give(l, P_l, P_l').
template <typename N, typename Give>
MOLKERN_INLINE void legendre_slopes(N c, int orders, Give&& give) {
  using T = Scalar<ValueOf<N>>;
  N slope = constant<N>(0), previous = constant<N>(0), last = constant<N>(0);
  legendre(c, orders, [&](int l, N p) {
    // P_l' = P_{l-2}' + (2 l - 1) P_{l-1}
    const N next = l == 0 ? constant<N>(0) : slope + last * splat<ValueOf<N>>(T(2 * l - 1));
    give(l, p, next);
    slope = previous;
    previous = next;
    last = p;
  });
}

}  // namespace
}  // namespace molkern
