// Kernels that each break one rule, and sound ones beside them. Run as "broken_kernels NAME": the
// result is printed, or what the emulation says of the mistake.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "common/launch.h"

using molkern::block_shared;
using molkern::dynamic_shared;
using molkern::launch;

namespace {

constexpr unsigned all_lanes = 0xffffffffu;
constexpr int block_size = 128, blocks = 4;

__global__ void missed_barrier(float* out) {
  if (threadIdx.x != 7) __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = 1;
}

__global__ void two_barriers(float* out) {
  if (threadIdx.x < 64)
    __syncthreads();
  else
    __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = 1;
}

__global__ void barrier_within_exchange(float* out) {
  float value = 1;
  if (threadIdx.x % 32 == 3)
    __syncthreads();
  else
    value = __shfl_xor_sync(all_lanes, value, 1);
  out[blockIdx.x * blockDim.x + threadIdx.x] = value;
}

__global__ void exited_lane(float* out) {
  if (threadIdx.x == 5) return;
  out[blockIdx.x * blockDim.x + threadIdx.x] = __shfl_down_sync(all_lanes, 1.0f, 1);
}

__global__ void absent_lane(float* out) {  // launched with 48 threads
  out[threadIdx.x] = __shfl_down_sync(all_lanes, 1.0f, 1);
}

__global__ void own_lane_left_out(float* out) {
  out[threadIdx.x] = __shfl_down_sync(0xffffu, 1.0f, 1);
}

__global__ void different_exchanges(float* out) {
  float value = 1;
  if (threadIdx.x % 2)
    value = __shfl_xor_sync(all_lanes, value, 1);
  else
    value = __any_sync(all_lanes, 1);
  out[blockIdx.x * blockDim.x + threadIdx.x] = value;
}

// Half a warp reads from the other half, which its mask leaves out.
__global__ void read_outside_mask(float* out) {
  const unsigned mask = threadIdx.x % 32 < 16 ? 0x0000ffffu : 0xffff0000u;
  out[blockIdx.x * blockDim.x + threadIdx.x] = __shfl_xor_sync(mask, 1.0f, 16);
}

__global__ void unwritten_shared(float* out) {
  struct Shared {
    float values[block_size];
  };
  Shared& shared = block_shared<Shared>();
  if (threadIdx.x < block_size - 1) shared.values[threadIdx.x] = 1;
  __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = shared.values[threadIdx.x];
}

__global__ void unwritten_dynamic_shared(double* out) {
  double* shared = dynamic_shared<double>();
  if (blockIdx.x == 0) shared[threadIdx.x] = 1;  // what block 0 wrote is not there for block 1
  __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = shared[threadIdx.x];
}

__global__ void no_dynamic_shared(float* out) { out[0] = dynamic_shared<float>()[0]; }

// Neighboring lanes read what others write, with no barrier in between.
__global__ void race(float* out) {
  struct Shared {
    float values[block_size];
  };
  Shared& shared = block_shared<Shared>();
  shared.values[threadIdx.x] = threadIdx.x;
  __syncthreads();
  shared.values[threadIdx.x] += shared.values[(threadIdx.x + 1) % block_size];
  __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = shared.values[threadIdx.x];
}

// Places by order of arrival: right as a set, different from run to run.
__global__ void arrival_order(float* out, int* count) {
  const int place = atomicAdd(count, 1);
  out[place] = blockIdx.x * blockDim.x + threadIdx.x;
}

__global__ void beyond_shared(float* out) {
  float* shared = dynamic_shared<float>();
  shared[threadIdx.x + 1] = 1;
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x + 1];
}

__global__ void beyond_global(float* out) { out[blockIdx.x * blockDim.x + threadIdx.x + 1] = 1; }

__global__ void misaligned(float* out) {
  if (threadIdx.x < 8) reinterpret_cast<float4*>(out + 1)[threadIdx.x] = make_float4(1, 1, 1, 1);
}

__device__ float warp_sum(float value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(all_lanes, value, step);
  return value;
}

// Every way to meet, once, none of it broken.
__global__ void sound(float* out, int* count) {
  struct Shared {
    float sums[block_size / 32];
    int votes;
  };
  Shared& shared = block_shared<Shared>();
  float* own = dynamic_shared<float>();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  own[threadIdx.x] = threadIdx.x;
  if (threadIdx.x == 0) shared.votes = 0;
  __syncthreads();
  const float sum = warp_sum(own[threadIdx.x ^ 1]);
  if (lane == 0) shared.sums[warp] = sum;
  const unsigned even = __ballot_sync(all_lanes, lane % 2 == 0);
  if (lane < 8) {
    const float up = __shfl_up_sync(0xffu, float(lane), 1, 8);
    if (up != (lane ? lane - 1 : 0)) atomicAdd(count, 1);
  }
  __syncwarp();
  if (even != 0x55555555u || __popc(even) != 16) atomicAdd(count, 1);
  if (__match_any_sync(all_lanes, lane / 8) != 0xffu << lane / 8 * 8) atomicAdd(count, 1);
  atomicAdd(&shared.votes, 1);
  if (__syncthreads_count(lane == 0) != block_size / 32) atomicAdd(count, 1);
  float total = 0;
  for (float part : shared.sums) total += part;
  out[blockIdx.x * blockDim.x + threadIdx.x] = total + shared.votes + *count;
}

double sum(const std::vector<float>& values) {
  double total = 0;
  for (size_t k = 0; k < values.size(); ++k) total += values[k] * double(k + 1);
  return total;
}

double run(const char* name, std::vector<float>& out) {
  std::vector<double> wide(out.size());
  int count = 0;
  const auto is = [&](const char* other) { return !std::strcmp(name, other); };
  const dim3 grid(blocks), block(block_size);
#define RUN(kernel) \
  if (is(#kernel)) launch(#kernel, kernel, grid, block, 0, nullptr, out.data())
  RUN(missed_barrier);
  RUN(two_barriers);
  RUN(barrier_within_exchange);
  RUN(exited_lane);
  RUN(own_lane_left_out);
  RUN(different_exchanges);
  RUN(read_outside_mask);
  RUN(unwritten_shared);
  RUN(no_dynamic_shared);
  RUN(race);
  RUN(beyond_global);
  RUN(misaligned);
#undef RUN
  if (is("absent_lane")) launch(name, absent_lane, dim3(1), dim3(48), 0, nullptr, out.data());
  if (is("arrival_order")) launch(name, arrival_order, grid, block, 0, nullptr, out.data(), &count);
  if (is("beyond_shared"))
    launch(name, beyond_shared, dim3(1), block, block_size * sizeof(float), nullptr, out.data());
  if (is("unwritten_dynamic_shared")) {
    launch(name, unwritten_dynamic_shared, grid, block, block_size * sizeof(double), nullptr,
           wide.data());
    out.assign(wide.begin(), wide.end());
  }
  if (is("too_many_threads")) launch(name, race, grid, dim3(64, 32), 0, nullptr, out.data());
  if (is("empty_grid")) launch(name, race, dim3(0), block, 0, nullptr, out.data());
  if (is("too_much_shared")) launch(name, race, grid, block, 60 * 1024, nullptr, out.data());
  if (is("sound"))
    launch(name, sound, grid, block, block_size * sizeof(float), nullptr, out.data(), &count);
  return sum(out);
}

}  // namespace

int main(int, char** arguments) {
  std::vector<float> out(block_size * blocks);
  try {
    std::printf("%.17g\n", run(arguments[1], out));
    for (const std::string& name : cuda_emulation::launched()) std::printf("%s\n", name.c_str());
  } catch (const std::runtime_error& error) {
    std::printf("error: %s\n", error.what());
  }
  return 0;
}
