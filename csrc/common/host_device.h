// Marks a formula that kernels of every kind inline: CPU kernels of each instruction set (where a
// copy that the linker shares between them would be wrong) and CUDA kernels.
#pragma once

#include <limits>

#ifdef __CUDACC__
#define MOLKERN_INLINE __host__ __device__ __forceinline__
#else
#define MOLKERN_INLINE inline __attribute__((always_inline))
#endif

namespace molkern {

// A vector whose square is less counts as zero: its length and all derivatives are zero. The square
// has lost its digits there, and the reciprocals that second derivatives are made of overflow.
template <typename T>
constexpr T smallest_square = std::numeric_limits<T>::min();

}  // namespace molkern
