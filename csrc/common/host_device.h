// Marks a formula that kernels of every kind inline: CPU kernels of each instruction set (where a
// copy that the linker shares between them would be wrong) and CUDA kernels.
#pragma once

#ifdef __CUDACC__
#define MOLKERN_INLINE __host__ __device__ __forceinline__
#else
#define MOLKERN_INLINE inline __attribute__((always_inline))
#endif
