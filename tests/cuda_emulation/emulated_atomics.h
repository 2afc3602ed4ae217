// Atomics on integers, and loads and stores with cache hints. Only one emulated thread runs at a
// time, so plain operations are atomic.
#pragma once

#include <algorithm>

#include "emulation.h"

namespace cuda_emulation {

template <typename T, typename Function>
T update(T* address, Function function) {
  maybe_yield();
  const T old = *address;
  *address = function(old);
  return old;
}

}  // namespace cuda_emulation

#define MOLKERN_ATOMICS(T)                                                                        \
  inline T atomicAdd(T* address, T value) {                                                       \
    return cuda_emulation::update(address, [=](T old) -> T { return old + value; });              \
  }                                                                                               \
  inline T atomicMax(T* address, T value) {                                                       \
    return cuda_emulation::update(address, [=](T old) { return std::max(old, value); });          \
  }                                                                                               \
  inline T atomicMin(T* address, T value) {                                                       \
    return cuda_emulation::update(address, [=](T old) { return std::min(old, value); });          \
  }                                                                                               \
  inline T atomicOr(T* address, T value) {                                                        \
    return cuda_emulation::update(address, [=](T old) -> T { return old | value; });              \
  }                                                                                               \
  inline T atomicAnd(T* address, T value) {                                                       \
    return cuda_emulation::update(address, [=](T old) -> T { return old & value; });              \
  }                                                                                               \
  inline T atomicXor(T* address, T value) {                                                       \
    return cuda_emulation::update(address, [=](T old) -> T { return old ^ value; });              \
  }                                                                                               \
  inline T atomicExch(T* address, T value) {                                                      \
    return cuda_emulation::update(address, [=](T) { return value; });                             \
  }                                                                                               \
  inline T atomicCAS(T* address, T expected, T value) {                                           \
    return cuda_emulation::update(address, [=](T old) { return old == expected ? value : old; }); \
  }

MOLKERN_ATOMICS(int)
MOLKERN_ATOMICS(unsigned)
MOLKERN_ATOMICS(unsigned long long)
#undef MOLKERN_ATOMICS

inline int atomicSub(int* address, int value) {
  return cuda_emulation::update(address, [=](int old) { return old - value; });
}
inline unsigned atomicSub(unsigned* address, unsigned value) {
  return cuda_emulation::update(address, [=](unsigned old) { return old - value; });
}

template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
T __ldcg(const T* address) {
  return *address;
}
template <typename T>
T __ldcs(const T* address) {
  return *address;
}
template <typename T>
void __stcg(T* address, T value) {
  *address = value;
}
template <typename T>
void __stcs(T* address, T value) {
  *address = value;
}
