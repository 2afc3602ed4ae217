// As many floats as the instruction set computes at once. Arithmetic and comparisons are the
// compiler's vector extensions; what they lack, turning a comparison into bits and packing the
// chosen lanes together, is here.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "common/isa.h"

namespace molkern::MOLKERN_ISA {

constexpr Isa this_isa = Isa::MOLKERN_ISA;
constexpr int lanes = this_isa == Isa::avx512 ? 16 : this_isa == Isa::avx2 ? 8 : 4;

typedef float Floats __attribute__((vector_size(4 * lanes)));
typedef int32_t Ints __attribute__((vector_size(4 * lanes)));

inline Floats broadcast(float value) { return value - Floats{}; }

inline Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// One bit per lane of a comparison's result.
inline uint32_t bits(Ints comparison) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)comparison, (__m512i)comparison);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)comparison));
#else
  uint32_t mask = 0;
  for (int k = 0; k < lanes; ++k) mask |= static_cast<uint32_t>(comparison[k] & 1) << k;
  return mask;
#endif
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// Entry `mask` lists the set bits of mask, lowest first.
alignas(64) constexpr auto packing_order = [] {
  std::array<std::array<uint8_t, 8>, 256> table{};
  for (int mask = 0; mask < 256; ++mask)
    for (int k = 0, n = 0; k < 8; ++k)
      if (mask >> k & 1) table[mask][n++] = static_cast<uint8_t>(k);
  return table;
}();
#endif

// Writes the lanes of `from` that `mask` names to `to`, in order. Overwrites up to `lanes` values.
inline void pack(void* to, Ints from, uint32_t mask) {
#if defined(__AVX512F__)
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<__mmask16>(mask), (__m512i)from));
#elif defined(__AVX2__)
  const __m128i bytes = _mm_loadl_epi64((const __m128i*)packing_order[mask].data());
  const __m256i order = _mm256_cvtepu8_epi32(bytes);
  _mm256_storeu_si256((__m256i*)to, _mm256_permutevar8x32_epi32((__m256i)from, order));
#else
  int32_t* next = static_cast<int32_t*>(to);
  for (int k = 0; k < lanes; ++k) {
    *next = from[k];
    next += mask >> k & 1;
  }
#endif
}

inline void pack(float* to, Floats from, uint32_t mask) { pack(to, (Ints)from, mask); }

inline void pack_words(uint32_t* to, const uint32_t* from, uint32_t mask) {
  Ints words;
  std::memcpy(&words, from, sizeof words);
  pack(to, words, mask);
}

inline void pack_words(uint64_t* to, const uint64_t* from, uint32_t mask) {
  for (; mask; mask &= mask - 1) *to++ = from[std::countr_zero(mask)];
}

}  // namespace molkern::MOLKERN_ISA
