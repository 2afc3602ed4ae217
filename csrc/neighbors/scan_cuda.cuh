// Prefix sums of counts, in place, in one launch: whoever counts also adds to the sum of the tile
// that the count belongs to, so that every block knows what lies before its tile. And what a block
// needs to reduce a number over its threads. For neighbors_cuda.cu only.
#pragma once

#include <cuda_runtime.h>

#include "common/launch.h"
#include "neighbors/neighbors.h"

namespace molkern {

using uint64 = unsigned long long;  // what CUDA's atomics take

constexpr unsigned all_lanes = 0xffffffffu;
constexpr int scan_threads = 256;
constexpr int scan_items = 8;  // consecutive counts of one thread
constexpr int scan_tile = scan_threads * scan_items;

// Tiles of `count` values; one more than needed where the last is full, for the total behind it.
inline int64_t scan_tiles(int64_t count) { return count / scan_tile + 1; }

struct ScanShared {
  uint64 warps[scan_threads / 32];
  uint64 result;
};

struct Sum {
  __device__ uint64 operator()(uint64 a, uint64 b) const { return a + b; }
};
struct Minimum {
  __device__ uint64 operator()(uint64 a, uint64 b) const { return a < b ? a : b; }
};

// The combination of all threads' values, in all threads.
template <typename Operation>
__device__ uint64 block_reduce(ScanShared& shared, uint64 value, Operation combine) {
  for (int step = 16; step; step /= 2)
    value = combine(value, __shfl_xor_sync(all_lanes, value, step));
  if (threadIdx.x % 32 == 0) shared.warps[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < scan_threads / 32; ++warp) value = combine(value, shared.warps[warp]);
    shared.result = value;
  }
  __syncthreads();
  const uint64 result = shared.result;
  __syncthreads();  // before the next use of `shared`
  return result;
}

// The sum of the values of all threads before this one.
__device__ inline uint64 block_prefix(ScanShared& shared, uint64 value) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint64 sum = value;
  for (int step = 1; step < 32; step *= 2) {
    const uint64 before = __shfl_up_sync(all_lanes, sum, step);
    if (lane >= step) sum += before;
  }
  if (lane == 31) shared.warps[warp] = sum;
  __syncthreads();
  for (int w = 0; w < warp; ++w) sum += shared.warps[w];
  __syncthreads();  // before the next use of `shared`
  return sum - value;
}

// Turns counts[0 .. count) into the sums of all counts before each, and appends the total, which
// the last block returns. A block serves one tile.
__device__ inline uint64 scan_block(ScanShared& shared, int32_t* counts, int64_t count,
                                    const uint64* tile_sums) {
  uint64 before = 0;
  for (unsigned tile = threadIdx.x; tile < blockIdx.x; tile += scan_threads)
    before += tile_sums[tile];
  before = block_reduce(shared, before, Sum());

  const int64_t first = static_cast<int64_t>(blockIdx.x) * scan_tile + threadIdx.x * scan_items;
  int32_t values[scan_items];
  uint64 own = 0;
  for (int k = 0; k < scan_items; ++k) {
    values[k] = first + k < count ? counts[first + k] : 0;
    own += static_cast<uint64>(values[k]);
  }
  uint64 sum = before + block_prefix(shared, own);
  for (int k = 0; k < scan_items; ++k) {
    if (first + k <= count) counts[first + k] = static_cast<int32_t>(sum);
    sum += static_cast<uint64>(values[k]);
  }
  return before + tile_sums[blockIdx.x];
}

__global__ void __launch_bounds__(scan_threads)
    scan_bins(int32_t* counts, int64_t count, const uint64* tile_sums) {
  scan_block(block_shared<ScanShared>(), counts, count, tile_sums);
}

}  // namespace molkern
