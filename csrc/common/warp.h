// How the lanes of a warp share the rows of a matrix, and the loads, stores and sums that it takes.
// For .cu files only.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace molkern {

constexpr int warp_lanes = 32;
constexpr unsigned full_warp = 0xffffffffu;

// `count` numbers of a row are dealt to `tiles` teams of `lanes` lanes (a power of two), `width`
// neighboring numbers to a lane; 32 / lanes teams fit in a warp.
struct RowShape {
  int width;
  int lanes;
  int tiles;
};

// The shape with the fewest idle lanes, and of those the widest with at most `most` lanes. At least
// eight lanes, where there is work for them, so that loads fill sectors of 32 bytes.
inline RowShape row_shape(int64_t count, int width, int most = warp_lanes) {
  const int64_t lanes = (count + width - 1) / width;
  RowShape best{width, 1, 1};
  while (best.lanes < lanes && best.lanes < 8) best.lanes *= 2;
  best.tiles = static_cast<int>((lanes + best.lanes - 1) / best.lanes);
  for (int wider = 2 * best.lanes; wider <= most && wider / 2 < lanes; wider *= 2) {
    const int tiles = static_cast<int>((lanes + wider - 1) / wider);
    if (int64_t{tiles} * wider <= int64_t{best.tiles} * best.lanes) best = {width, wider, tiles};
  }
  return best;
}

// The widest load for rows of `count` numbers: 16 bytes where all the arrays allow it.
template <typename T, typename... Pointers>
int row_width(int64_t count, const Pointers*... rows) {
  constexpr int widest = 16 / sizeof(T);
  const bool aligned = ((reinterpret_cast<uintptr_t>(rows) % 16 == 0) && ...);
  return aligned && count % widest == 0 ? widest : 1;
}

// Numbers that one instruction loads or stores.
template <typename T, int width>
struct Pack;
template <typename T>
struct Pack<T, 1> {
  using Word = T;
  T value[1];
};
template <>
struct alignas(16) Pack<float, 4> {
  using Word = float4;
  float value[4];
};
template <>
struct alignas(16) Pack<double, 2> {
  using Word = double2;
  double value[2];
};

template <int width, typename T>
__device__ __forceinline__ Pack<T, width> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, width>*>(from);
}

// For what is read or written once: it is the first to leave the caches.
__device__ __forceinline__ Pack<float, 4> to_pack(float4 word) {
  return {{word.x, word.y, word.z, word.w}};
}
__device__ __forceinline__ Pack<double, 2> to_pack(double2 word) { return {{word.x, word.y}}; }
template <typename T>
__device__ __forceinline__ Pack<T, 1> to_pack(T word) {
  return {{word}};
}

template <int width, typename T>
__device__ __forceinline__ Pack<T, width> load_streaming(const T* from) {
  return to_pack(__ldcs(reinterpret_cast<const typename Pack<T, width>::Word*>(from)));
}

template <int width, typename T>
__device__ __forceinline__ void store_pack(T* to, const Pack<T, width>& pack) {
  *reinterpret_cast<Pack<T, width>*>(to) = pack;
}

__device__ __forceinline__ void store_streaming(float* to, const Pack<float, 4>& pack) {
  const float* v = pack.value;
  __stcs(reinterpret_cast<float4*>(to), make_float4(v[0], v[1], v[2], v[3]));
}
__device__ __forceinline__ void store_streaming(double* to, const Pack<double, 2>& pack) {
  __stcs(reinterpret_cast<double2*>(to), make_double2(pack.value[0], pack.value[1]));
}
template <typename T>
__device__ __forceinline__ void store_streaming(T* to, const Pack<T, 1>& pack) {
  __stcs(to, pack.value[0]);
}

// The sum over lanes first, first + step, ... of every `step` lanes with `width` of them together
// (powers of two, step < width), in every lane and in a fixed order. All lanes of the warp call it.
template <typename T>
__device__ __forceinline__ T sum_lanes(T value, int step = 1, int width = warp_lanes) {
  for (int offset = step; offset < width; offset *= 2)
    value += __shfl_xor_sync(full_warp, value, offset);
  return value;
}

// The sum over the teams of a warp, of `lanes` lanes each, in every team.
template <int width, typename T>
__device__ __forceinline__ void sum_teams(Pack<T, width>& sum, int lanes) {
#pragma unroll
  for (int v = 0; v < width; ++v) sum.value[v] = sum_lanes(sum.value[v], lanes);
}

}  // namespace molkern
