// The coefficients A of a tile of incoming edges for a few outgoing ones, in shared memory. For
// direct_*_cuda.cu only.
#pragma once

#include "triplets/triplets_device.cuh"

namespace molkern {

// What the block works on: incoming edges first ... first + count (at most `tile`), and outgoing
// edges in shared memory, of which `outgoing_count` of `groups` times outgoing_group are there.
template <typename N>
struct PairTile {
  const OutgoingEdge<N>* outgoing;
  int outgoing_count, groups;
  int32_t first;
  int count, tile;

  __device__ __forceinline__ bool is_triplet(int a, int b) const {
    return a < count && b < outgoing_count && outgoing[b].excluded != first + a;
  }
};

// cosines[b, a]
template <typename N>
__device__ __forceinline__ void fill_cosines(const TripletArguments<N>& in,
                                             const PairTile<N>& pairs, N* cosines) {
  const int total = pairs.outgoing_count * pairs.tile;
  for (int k = threadIdx.x; k < total; k += blockDim.x) {
    const int a = k % pairs.tile, b = k / pairs.tile;
    N c = constant<N>(0);
    if (pairs.is_triplet(a, b))
      c = PairAngle<N>(in.form.angle, edge_vector(in.v, pairs.first + a), pairs.outgoing[b].d).c;
    cosines[k] = c;
  }
}

// Radial parts of an incoming edge for two neighboring channels of one order; zeros beyond P.
template <typename N>
__device__ __forceinline__ void load_radial(const TripletArguments<N>& in, int64_t edge, int l,
                                            int p, N (&q)[2]) {
  const int channels = in.form.channels;
  const int64_t row = (edge * in.form.orders + l) * channels;
  q[0] = p < channels ? in.q[row + p] : constant<N>(0);
  q[1] = p + 1 < channels ? in.q[row + p + 1] : constant<N>(0);
}

// coefficients[b, a, t] = A for channel first_p + t, zero for what is no triplet. A thread carries
// the polynomials of one incoming and a group of outgoing edges along, for two channels.
template <typename N>
__device__ __forceinline__ void fill_coefficients(const TripletArguments<N>& in,
                                                  const PairTile<N>& pairs, int first_p,
                                                  const N* cosines,
                                                  const LegendreStep<ValueOf<N>>* steps,
                                                  N* coefficients) {
  const int total = pairs.groups * pairs.tile * channel_pairs;
  for (int k = threadIdx.x; k < total; k += blockDim.x) {
    const int pair = k % channel_pairs, a = k / channel_pairs % pairs.tile;
    const int first_b = k / (channel_pairs * pairs.tile) * outgoing_group;
    N c[outgoing_group], now[outgoing_group], before[outgoing_group];
    N sum[outgoing_group][2];
#pragma unroll
    for (int b = 0; b < outgoing_group; ++b) {
      const bool there = first_b + b < pairs.outgoing_count;
      c[b] = there ? cosines[(first_b + b) * pairs.tile + a] : constant<N>(0);
      now[b] = constant<N>(1);
      before[b] = sum[b][0] = sum[b][1] = constant<N>(0);
    }
    const int orders = a < pairs.count && first_b < pairs.outgoing_count ? in.form.orders : 0;
    for (int l = 0; l < orders; ++l) {
      N q[2];
      load_radial(in, pairs.first + a, l, first_p + 2 * pair, q);
      const LegendreStep<ValueOf<N>> step = steps[l];
#pragma unroll
      for (int b = 0; b < outgoing_group; ++b) {
        sum[b][0] += q[0] * now[b];
        sum[b][1] += q[1] * now[b];
        const N next = (c[b] * now[b]) * step.rise - before[b] * step.fall;
        before[b] = now[b];
        now[b] = next;
      }
    }
#pragma unroll
    for (int b = 0; b < outgoing_group; ++b) {
      const bool triplet = pairs.is_triplet(a, first_b + b);
      N* row = coefficients + ((first_b + b) * pairs.tile + a) * tile_channels + 2 * pair;
      row[0] = triplet ? sum[b][0] : constant<N>(0);
      row[1] = triplet ? sum[b][1] : constant<N>(0);
    }
  }
}

// The coefficients of one pair, for all channels of the tile.
template <typename N>
__device__ __forceinline__ void read_coefficients(const N* row, N (&numbers)[tile_channels]) {
  constexpr int width = row_numbers<N>;
#pragma unroll
  for (int j = 0; j < tile_channels; j += width) {
    const auto part = *reinterpret_cast<const RowPart<N, width>*>(row + j);
#pragma unroll
    for (int i = 0; i < width; ++i) numbers[j + i] = part.value[i];
  }
}

// weights[t, f] of a tile of channels and of `row` features, zeros beyond.
template <typename N>
__device__ __forceinline__ void fill_weights(const TripletArguments<N>& in, int first_p,
                                             int first_f, int row, N* weights) {
  for (int k = threadIdx.x; k < row * tile_channels; k += blockDim.x) {
    const int p = first_p + k % tile_channels, f = first_f + k / tile_channels;
    const bool there = p < in.form.channels && f < in.form.features;
    weights[k % tile_channels * row + k / tile_channels] =
        there ? in.w[int64_t{f} * in.form.channels + p] : constant<N>(0);
  }
}

template <typename N>
__device__ __forceinline__ void read_weights(const N* weights, int row, int lane, int t,
                                             N (&w)[row_numbers<N>]) {
  constexpr int width = row_numbers<N>;
  const auto part = *reinterpret_cast<const RowPart<N, width>*>(weights + t * row + lane * width);
#pragma unroll
  for (int k = 0; k < width; ++k) w[k] = part.value[k];
}

}  // namespace molkern
