// What the kernels of dtnn_cuda.cu share: the edges that a block works on at a time, in shared
// memory, and their way through W. For *_cuda.cu only.
//
// Edges are dealt to groups of so many as fill two 16-byte words. A thread has one factor or
// channel of a group, so that a number of W, read from the first cache, serves the whole group.
// Matrices of edges have the edges side by side; a word between rows keeps them in different banks.
#pragma once

#include "common/launch.h"
#include "common/warp.h"
#include "dtnn/dtnn.h"

namespace molkern {

constexpr int dtnn_threads = 128;
constexpr int most_groups = 4;  // of edges that a block works on at a time: 32, or 16 of float64

template <typename T>
constexpr int word_numbers = 16 / static_cast<int>(sizeof(T));
template <typename T>
constexpr int group_edges = 2 * word_numbers<T>;

template <typename T>
struct DtnnArguments {
  DtnnInputs<T> in;
  DtnnDirection<T> along;
  const T* by_factor;         // W transposed, [K, C]
  const T* change_by_factor;  // the direction's, or null
  int groups;                 // of edges that a block works on at a time
};

// What a kernel is compiled for; `derivatives` of the splines are taken.
template <int degree_, bool directed_, int derivatives_, typename T_>
struct DeviceKind {
  using T = T_;
  static constexpr int degree = degree_, derivatives = derivatives_;
  static constexpr bool directed = directed_;
  static constexpr int planes = directed ? 2 : 1;  // numbers, and their changes
  static constexpr int word = word_numbers<T>, group = group_edges<T>;
};

template <typename Kind>
struct ChunkEdge {
  using T = typename Kind::T;
  int32_t x_row, g_row;  // sender and receiver
  int32_t edge, first;   // first row of coefficients
  T change;              // of the distance
  T weight[Kind::derivatives + 1][Kind::degree + 1];
};

// The shared memory of a block.
template <typename Kind>
struct Chunk {
  using T = typename Kind::T;
  int edges, stride;     // of a row of a matrix
  int p_plane, u_plane;  // from a matrix of numbers to that of their changes
  T *p, *u;              // [planes, K, stride], [planes, C, stride]
  T* sums;               // [groups, max(K, C)]
  T* slices;             // [dtnn_threads]
  ChunkEdge<Kind>* entries;
  int* count;

  __device__ __forceinline__ explicit Chunk(const DtnnArguments<T>& a) {
    const int factors = static_cast<int>(a.in.filters.features);
    const int channels = static_cast<int>(a.in.channels);
    edges = a.groups * Kind::group;
    stride = edges + Kind::word;
    p_plane = factors * stride;
    u_plane = channels * stride;
    p = dynamic_shared<T>();
    u = p + Kind::planes * p_plane;
    sums = u + Kind::planes * u_plane;
    slices = sums + a.groups * max(factors, channels);
    entries = reinterpret_cast<ChunkEdge<Kind>*>(slices + dtnn_threads);
    count = reinterpret_cast<int*>(entries + edges);
  }

  static size_t size(int64_t factors, int64_t channels, int groups) {
    const int64_t edges = groups * Kind::group, stride = edges + Kind::word;
    const int64_t numbers = Kind::planes * (factors + channels) * stride +
                            groups * std::max(factors, channels) + dtnn_threads;
    return numbers * sizeof(T) + edges * sizeof(ChunkEdge<Kind>) + sizeof(int);
  }
};

template <typename Kind, typename T>
__device__ __forceinline__ void set_entry(const DtnnArguments<T>& a, ChunkEdge<Kind>& entry,
                                          int32_t x_row, int32_t g_row, int64_t edge, T d,
                                          int32_t interval) {
  const auto weights =
      spline_weights<Kind::degree, Kind::derivatives>(a.in.filters.grid, d, interval);
  entry.x_row = x_row;
  entry.g_row = g_row;
  entry.edge = static_cast<int32_t>(edge);
  entry.first = weights.first;
  entry.change = T(0);
  if (Kind::directed && a.along.distances) entry.change = a.along.distances[edge];
#pragma unroll
  for (int n = 0; n <= Kind::derivatives; ++n)
#pragma unroll
    for (int k = 0; k <= Kind::degree; ++k) entry.weight[n][k] = weights.weight[n][k];
}

// Fetches those of a row's entries from `first` on that are not zero; the row is a sender's or a
// receiver's. Calls skip(edge) for those that are.
template <bool senders, typename Kind, typename T, typename Skip>
__device__ __forceinline__ void fetch_entries(const DtnnArguments<T>& a, const Chunk<Kind>& chunk,
                                              const Adjacency& graph, int64_t row, int64_t first,
                                              Skip&& skip) {
  if (threadIdx.x < warp_lanes) {
    const int lane = static_cast<int>(threadIdx.x);
    const int64_t k = first + lane;
    const bool there = lane < chunk.edges && k < graph.row_ptr[row + 1];
    const int64_t edge = there ? graph.edge(k) : 0;
    const T d = there ? a.in.filters.distances[edge] : T(0);
    const bool used = there && !spline_is_zero(a.in.filters.grid, d);
    const unsigned all = __ballot_sync(full_warp, used);
    if (used) {
      const int place = __popc(all & ((1u << lane) - 1));
      const int32_t own = static_cast<int32_t>(row), other = graph.neighbors[k];
      set_entry(a, chunk.entries[place], senders ? own : other, senders ? other : own, edge, d,
                spline_interval(a.in.filters.grid, d));
    } else if (there) {
      skip(edge);
    }
    if (lane == 0) *chunk.count = __popc(all);
  }
  __syncthreads();
}

// The edges of an interval from place `first` on.
template <typename Kind, typename T>
__device__ __forceinline__ void fetch_interval(const DtnnArguments<T>& a, const Chunk<Kind>& chunk,
                                               const SplineBins& bins, int32_t interval,
                                               int64_t first) {
  const int own = static_cast<int>(threadIdx.x);
  const int64_t k = first + own, end = bins.ptr[interval + 1];
  if (own < chunk.edges && k < end) {
    const int64_t edge = bins.edges[k];
    set_entry(a, chunk.entries[own], bins.senders[k], bins.receivers[k], edge,
              a.in.filters.distances[edge], interval);
  }
  if (own == 0) *chunk.count = static_cast<int>(min(end - first, int64_t{chunk.edges}));
  __syncthreads();
}

// One factor of an edge: f, its slope, and their changes.
template <typename T>
struct Filter {
  T value, slope, change, slope_change;
};

// Slopes are left zero where `slopes` is false.
template <bool slopes, typename Kind, typename T>
__device__ __forceinline__ Filter<T> filter_at(const DtnnArguments<T>& a,
                                               const ChunkEdge<Kind>& entry, int k) {
  const int64_t factors = a.in.filters.features, at = entry.first * factors + k;
  Filter<T> f = {};
#pragma unroll
  for (int t = 0; t <= Kind::degree; ++t) {
    const T c = a.in.filters.table[at + t * factors];
    f.value += entry.weight[0][t] * c;
    if constexpr (slopes) f.slope += entry.weight[1][t] * c;
    if constexpr (Kind::directed) {
      f.change += entry.change * entry.weight[1][t] * c;
      if constexpr (slopes) f.slope_change += entry.change * entry.weight[2][t] * c;
    }
  }
  if (Kind::directed && a.along.table) {
#pragma unroll
    for (int t = 0; t <= Kind::degree; ++t) {
      const T c = a.along.table[at + t * factors];
      f.change += entry.weight[0][t] * c;
      if constexpr (slopes) f.slope_change += entry.weight[1][t] * c;
    }
  }
  return f;
}

// A feature of an edge's sender and its change.
template <typename Kind, typename T>
__device__ __forceinline__ void sender_feature(const DtnnArguments<T>& a,
                                               const ChunkEdge<Kind>& entry, int k, T* x, T* hx) {
  const int64_t at = entry.x_row * a.in.filters.features + k;
  *x = a.in.x[at];
  *hx = Kind::directed && a.along.x ? a.along.x[at] : T(0);
}

// p of the edges, zero up to a whole group.
template <typename Kind, typename T>
__device__ __forceinline__ void fill_products(const DtnnArguments<T>& a, const Chunk<Kind>& chunk,
                                              int count) {
  constexpr int word = Kind::word;
  const int factors = static_cast<int>(a.in.filters.features);
  const int words = (count + Kind::group - 1) / Kind::group * 2;
  for (int item = threadIdx.x; item < factors * words; item += dtnn_threads) {
    const int k = item % factors, e = item / factors * word;
    Pack<T, word> p = {}, change = {};
#pragma unroll
    for (int i = 0; i < word; ++i) {
      if (e + i >= count) continue;
      const ChunkEdge<Kind>& entry = chunk.entries[e + i];
      const Filter<T> f = filter_at<false>(a, entry, k);
      T x, hx;
      sender_feature(a, entry, k, &x, &hx);
      p.value[i] = x * f.value;
      if constexpr (Kind::directed) change.value[i] = hx * f.value + x * f.change;
    }
    store_pack(chunk.p + k * chunk.stride + e, p);
    if constexpr (Kind::directed)
      store_pack(chunk.p + chunk.p_plane + k * chunk.stride + e, change);
  }
  __syncthreads();
}

// The product of a matrix of edges, [planes, depth, stride], with a column of W and of its change
// (or null), whose numbers are `step` apart, for one group.
template <typename Kind, typename T>
__device__ __forceinline__ void multiply_group(const T* matrix, int plane, int stride, int depth,
                                               const T* w, const T* change, int step,
                                               T (&sum)[Kind::planes][Kind::group]) {
  constexpr int word = Kind::word;
#pragma unroll
  for (int n = 0; n < Kind::planes; ++n)
#pragma unroll
    for (int i = 0; i < Kind::group; ++i) sum[n][i] = T(0);
  for (int k = 0; k < depth; ++k) {
    const T factor = w[int64_t{k} * step];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Pack<T, word> number = load_pack<word>(matrix + k * stride + half * word);
#pragma unroll
      for (int i = 0; i < word; ++i) sum[0][half * word + i] += factor * number.value[i];
      if constexpr (Kind::directed) {
        const Pack<T, word> slope = load_pack<word>(matrix + plane + k * stride + half * word);
#pragma unroll
        for (int i = 0; i < word; ++i) sum[1][half * word + i] += factor * slope.value[i];
        if (change) {
          const T more = change[int64_t{k} * step];
#pragma unroll
          for (int i = 0; i < word; ++i) sum[1][half * word + i] += more * number.value[i];
        }
      }
    }
  }
}

// z of the edges, to use(channel, group, z).
template <typename Kind, typename T, typename Use>
__device__ __forceinline__ void to_channels(const DtnnArguments<T>& a, const Chunk<Kind>& chunk,
                                            int count, Use&& use) {
  const int factors = static_cast<int>(a.in.filters.features);
  const int channels = static_cast<int>(a.in.channels);
  const int groups = (count + Kind::group - 1) / Kind::group;
  for (int item = threadIdx.x; item < channels * groups; item += dtnn_threads) {
    const int c = item % channels, group = item / channels;
    T z[Kind::planes][Kind::group];
    multiply_group<Kind>(chunk.p + group * Kind::group, chunk.p_plane, chunk.stride, factors,
                         a.by_factor + c, a.change_by_factor ? a.change_by_factor + c : nullptr,
                         channels, z);
    use(c, group, z);
  }
}

// u of the edges from z, zero up to a whole group.
template <typename Kind, typename T>
__device__ __forceinline__ void fill_cotangents(const DtnnArguments<T>& a, const Chunk<Kind>& chunk,
                                                int count, const T* g) {
  constexpr int word = Kind::word;
  to_channels(a, chunk, count, [&](int c, int group, T(&z)[Kind::planes][Kind::group]) {
    T* to = chunk.u + c * chunk.stride + group * Kind::group;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Pack<T, word> u = {}, change = {};
#pragma unroll
      for (int i = 0; i < word; ++i) {
        const int e = group * Kind::group + half * word + i;
        if (e >= count) continue;
        const T m = tanh(z[0][half * word + i]);
        const T cotangent = g[chunk.entries[e].g_row * a.in.channels + c];
        u.value[i] = cotangent * ((T(1) - m) * (T(1) + m));
        if constexpr (Kind::directed)
          change.value[i] = T(-2) * (m * z[1][half * word + i]) * u.value[i];
      }
      store_pack(to + half * word, u);
      if constexpr (Kind::directed) store_pack(to + chunk.u_plane + half * word, change);
    }
  });
  __syncthreads();
}

// q of the edges, to use(factor, group, q).
template <typename Kind, typename T, typename Use>
__device__ __forceinline__ void to_factors(const DtnnArguments<T>& a, const Chunk<Kind>& chunk,
                                           int count, Use&& use) {
  const int factors = static_cast<int>(a.in.filters.features);
  const int channels = static_cast<int>(a.in.channels);
  const int groups = (count + Kind::group - 1) / Kind::group;
  const T* change = Kind::directed ? a.along.weight : nullptr;
  for (int item = threadIdx.x; item < factors * groups; item += dtnn_threads) {
    const int k = item % factors, group = item / factors;
    T q[Kind::planes][Kind::group];
    multiply_group<Kind>(chunk.u + group * Kind::group, chunk.u_plane, chunk.stride, channels,
                         a.in.weight + k, change ? change + k : nullptr, factors, q);
    use(k, group, q);
  }
}

}  // namespace molkern
