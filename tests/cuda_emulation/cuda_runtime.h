// Stands in for CUDA's header of this name, so that a host compiler can compile and run .cu files.
// Put this folder first among the include directories and define MOLKERN_EMULATE_CUDA.
//
// Left out on purpose: __shared__ (common/launch.h has block_shared and dynamic_shared, which the
// emulation can poison), atomics on floating-point numbers (their order changes the result), and
// kernel<<<...>>> (common/launch.h has launch).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __constant__ static
#define __grid_constant__
#define __shared__ static_assert(false, "use block_shared or dynamic_shared of common/launch.h");

#include "emulated_atomics.h"
#include "emulated_math.h"
#include "emulated_threads.h"
#include "emulated_vectors.h"
#include "emulation.h"

struct CUstream_st;
using cudaStream_t = CUstream_st*;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
constexpr cudaMemcpyKind cudaMemcpyDeviceToDevice = static_cast<cudaMemcpyKind>(3);
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid value";
}

inline cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t = nullptr) {
  if (bytes) std::memset(target, value, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t = nullptr) {
  if (bytes) std::memcpy(target, source, bytes);
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int bytes) {
  cuda_emulation::allow_dynamic_shared(static_cast<size_t>(bytes));
  return cudaSuccess;
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

// The emulated device: the smallest that kernels must fit (compute capability 7.5).
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 4;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 7;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 5;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = 64 * 1024;
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}
