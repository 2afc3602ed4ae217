// The one way to launch a kernel: names it in errors, and lets the host emulation stand in. So do
// block_shared and dynamic_shared, the one way to shared memory. For .cu files only.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "common/stream.h"

namespace molkern {

// Blocks of `threads` that cover `count` items; at least one, so that a launch is always valid.
inline unsigned blocks_for(int64_t count, unsigned threads) {
  const int64_t blocks = (count + threads - 1) / threads;
  return static_cast<unsigned>(blocks > 0 ? blocks : 1);
}

#ifdef MOLKERN_EMULATE_CUDA
// tests/cuda_emulation/cuda_runtime.h declares the cuda_emulation functions.
template <typename... Parameters, typename... Arguments>
void launch(const char* kernel_name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            size_t shared_bytes, Stream, Arguments... arguments) {
  cuda_emulation::run(kernel_name, grid, block, shared_bytes, [&] { kernel(arguments...); });
}

template <typename T>
T& block_shared() {
  return cuda_emulation::block_shared<T>();
}

template <typename T>
T* dynamic_shared() {
  return static_cast<T*>(cuda_emulation::dynamic_shared());
}
#else
template <typename... Parameters, typename... Arguments>
void launch(const char* kernel_name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            size_t shared_bytes, Stream stream, Arguments... arguments) {
  // clang-format off
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
  // clang-format on
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("molkern: CUDA kernel ") + kernel_name +
                             " could not be launched: " + cudaGetErrorString(error));
}

// A block's shared variables, gathered in a struct that is trivial to construct; uninitialised.
// Every struct type has one instance per block:
//   struct Shared { float tile[32][33]; int count; };
//   Shared& shared = block_shared<Shared>();
template <typename T>
__device__ __forceinline__ T& block_shared() {
  __shared__ T shared;
  return shared;
}

// The shared memory whose size the launch gives, aligned to 16 bytes; uninitialised.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char molkern_dynamic_shared[];
  return reinterpret_cast<T*>(molkern_dynamic_shared);
}
#endif

// Sets bytes on the device to zero.
inline void clear(void* target, size_t bytes, Stream stream) {
  const cudaError_t error = cudaMemsetAsync(target, 0, bytes, stream);
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("molkern: CUDA memory could not be cleared: ") +
                             cudaGetErrorString(error));
}

}  // namespace molkern
