// What a kernel knows of its thread, and how threads meet: barriers, shuffles, votes.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emulated_vectors.h"
#include "emulation.h"

// Set by the scheduler whenever it resumes a thread; only one thread runs at a time.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

inline void __syncthreads(int line = __builtin_LINE()) { cuda_emulation::barrier(line); }
inline int __syncthreads_count(int predicate, int line = __builtin_LINE()) {
  return cuda_emulation::barrier_count(predicate, line);
}
inline int __syncthreads_or(int predicate, int line = __builtin_LINE()) {
  return cuda_emulation::barrier_count(predicate, line) > 0;
}
inline int __syncthreads_and(int predicate, int line = __builtin_LINE()) {
  return cuda_emulation::barrier_count(!predicate, line) == 0;
}

inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
  cuda_emulation::exchange(cuda_emulation::Exchange::sync, mask, 0, 0, line);
}

// Which lanes run together is up to the hardware; a kernel must be right for any answer that holds
// the lane itself, so here it is alone.
inline unsigned __activemask() { return 1u << cuda_emulation::lane(); }

inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  using cuda_emulation::Exchange;
  return static_cast<unsigned>(
      cuda_emulation::exchange(Exchange::vote, mask, predicate != 0, 0, line));
}
inline int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return __ballot_sync(mask, predicate, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return __ballot_sync(mask, predicate, line) == mask;
}

namespace cuda_emulation {

template <typename T>
uint64_t to_bits(T value) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "warps exchange numbers of 32 or 64 bits");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
T shuffle(unsigned mask, T value, int source, int line) {
  const uint64_t bits = exchange(Exchange::shuffle, mask, to_bits(value), source, line);
  T result;
  std::memcpy(&result, &bits, sizeof(T));
  return result;
}

}  // namespace cuda_emulation

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, int line = __builtin_LINE()) {
  const int first = cuda_emulation::lane() & ~(width - 1);
  return cuda_emulation::shuffle(mask, value, first | (source & (width - 1)), line);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 int line = __builtin_LINE()) {
  const int lane = cuda_emulation::lane(), source = lane - static_cast<int>(delta);
  const int first = lane & ~(width - 1);
  return cuda_emulation::shuffle(mask, value, source < first ? lane : source, line);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   int line = __builtin_LINE()) {
  const int lane = cuda_emulation::lane(), source = lane + static_cast<int>(delta);
  const int last = lane | (width - 1);
  return cuda_emulation::shuffle(mask, value, source > last ? lane : source, line);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, int line = __builtin_LINE()) {
  const int lane = cuda_emulation::lane(), source = lane ^ bits, last = lane | (width - 1);
  return cuda_emulation::shuffle(mask, value, source > last ? lane : source, line);
}

template <typename T>
unsigned __match_any_sync(unsigned mask, T value, int line = __builtin_LINE()) {
  using cuda_emulation::Exchange;
  return static_cast<unsigned>(
      cuda_emulation::exchange(Exchange::match, mask, cuda_emulation::to_bits(value), 0, line));
}

inline void __threadfence() {}
inline void __threadfence_block() {}
