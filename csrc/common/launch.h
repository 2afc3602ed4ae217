// The one way to launch a kernel: names it in errors, and lets the host emulation stand in.
// For .cu files only.
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
// tests/cuda_emulation/cuda_runtime.h defines cuda_emulation::run.
template <typename... Parameters, typename... Arguments>
void launch(const char* kernel_name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            size_t shared_bytes, Stream, Arguments... arguments) {
  cuda_emulation::run(kernel_name, grid, block, shared_bytes, [&] { kernel(arguments...); });
}
#else
template <typename... Parameters, typename... Arguments>
void launch(const char* kernel_name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            size_t shared_bytes, Stream stream, Arguments... arguments) {
  kernel<<<grid, block, shared_bytes, stream> > >(static_cast<Parameters>(arguments)...);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("molkern: CUDA kernel ") + kernel_name +
                             " could not be launched: " + cudaGetErrorString(error));
}
#endif

}  // namespace molkern
