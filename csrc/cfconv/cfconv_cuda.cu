#include <algorithm>

#include "cfconv/cfconv.h"
#include "common/launch.h"
#include "common/warp.h"

namespace molkern {
namespace {

constexpr int unroll = 4;  // entries whose loads are on their way together
constexpr int row_threads = 256;
constexpr int long_row_threads = 512;
constexpr int long_row_lanes = 8;
constexpr int few_rows = 256;  // up to here a whole block takes each row

// The neighbors and edges of `unroll` entries, `stride` apart.
struct Entries {
  int32_t neighbor[unroll];
  int32_t edge[unroll];
};

__device__ __forceinline__ Entries fetch(const Adjacency& graph, int64_t entry, int64_t last,
                                         int stride) {
  Entries entries;
#pragma unroll
  for (int u = 0; u < unroll; ++u) {
    const int64_t k = entry + u * stride;
    entries.neighbor[u] = k < last ? graph.neighbors[k] : 0;
    entries.edge[u] = k < last ? static_cast<int32_t>(graph.edge(k)) : 0;
  }
  return entries;
}

// Adds the products of entries first, first + stride, ... to sum, in this order.
template <int width, typename T>
__device__ __forceinline__ void add_entries(const Adjacency& graph, const T* x, const T* w,
                                            int64_t features, int64_t first, int64_t last,
                                            int stride, Pack<T, width>& sum) {
  Entries next = fetch(graph, first, last, stride);
  for (int64_t k = first; k < last; k += unroll * stride) {
    Pack<T, width> neighbor[unroll] = {}, filter[unroll] = {};
#pragma unroll
    for (int u = 0; u < unroll; ++u) {
      if (k + u * stride >= last) continue;
      filter[u] = load_streaming<width>(w + next.edge[u] * features);
      neighbor[u] = load_pack<width>(x + next.neighbor[u] * features);
    }
    next = fetch(graph, k + unroll * stride, last, stride);
#pragma unroll
    for (int u = 0; u < unroll; ++u)
#pragma unroll
      for (int v = 0; v < width; ++v) sum.value[v] += neighbor[u].value[v] * filter[u].value[v];
  }
}

// y[r, f] = sum over k of x[neighbors[k], f] w[edge(k), f]: a warp for every row and tile of
// features. Its teams take entries in turn; their sums are added by a fixed tree.
// Must move: w once (E F numbers), x and y once (the gather of x comes from the caches), 4 or 8
// bytes of indices per entry.
template <typename T, int width>
__global__ void __launch_bounds__(row_threads)
    convolve_rows(Adjacency graph, const T* __restrict__ x, const T* __restrict__ w,
                  T* __restrict__ y, int64_t features, int lanes) {
  const int lane = threadIdx.x % warp_lanes, team = lane / lanes;
  const int64_t row = int64_t{blockIdx.x} * (row_threads / warp_lanes) + threadIdx.x / warp_lanes;
  if (row >= graph.rows) return;  // the whole warp
  const int64_t feature = (int64_t{blockIdx.y} * lanes + lane % lanes) * width;
  const bool active = feature < features;
  Pack<T, width> sum = {};
  if (active)
    add_entries<width>(graph, x + feature, w + feature, features,
                       graph.row_ptr[row] + int64_t{team}, graph.row_ptr[row + 1],
                       warp_lanes / lanes, sum);
  sum_teams(sum, lanes);
  if (active && team == 0) store_pack(y + row * features + feature, sum);
}

template <typename T>
struct LongRowSums {
  T part[long_row_threads / warp_lanes][long_row_lanes * 4];
};

// The same for few rows, perhaps very long ones: a block for every row and tile of features.
template <typename T, int width>
__global__ void __launch_bounds__(long_row_threads)
    convolve_long_rows(Adjacency graph, const T* __restrict__ x, const T* __restrict__ w,
                       T* __restrict__ y, int64_t features, int lanes) {
  LongRowSums<T>& shared = block_shared<LongRowSums<T>>();
  const int lane = threadIdx.x % warp_lanes, warp = threadIdx.x / warp_lanes;
  const int team = threadIdx.x / lanes;
  const int64_t row = blockIdx.x, tile = int64_t{blockIdx.y} * lanes * width;
  const int64_t feature = tile + lane % lanes * width;
  Pack<T, width> sum = {};
  if (feature < features)
    add_entries<width>(graph, x + feature, w + feature, features,
                       graph.row_ptr[row] + int64_t{team}, graph.row_ptr[row + 1],
                       long_row_threads / lanes, sum);
  sum_teams(sum, lanes);
  if (lane < lanes)
    for (int v = 0; v < width; ++v) shared.part[warp][lane * width + v] = sum.value[v];
  __syncthreads();
  const int own = threadIdx.x;
  if (own >= lanes * width || tile + own >= features) return;
  T total = 0;
  for (int k = 0; k < long_row_threads / warp_lanes; ++k) total += shared.part[k][own];
  y[row * features + tile + own] = total;
}

// p[edge(k), f] = a[r, f] b[neighbors[k], f]: a warp for every row (or slice of its entries) and
// tile of features; a's part stays in registers.
// Must move: p once (E F numbers written), a and b once (the gather of b comes from the caches),
// 4 or 8 bytes of indices per entry.
template <typename T, int width>
__global__ void __launch_bounds__(row_threads)
    edge_product_rows(Adjacency graph, const T* __restrict__ a, const T* __restrict__ b,
                      T* __restrict__ p, int64_t features, int lanes) {
  const int lane = threadIdx.x % warp_lanes, teams = warp_lanes / lanes;
  const int64_t row = int64_t{blockIdx.x} * (row_threads / warp_lanes) + threadIdx.x / warp_lanes;
  const int64_t feature = (int64_t{blockIdx.y} * lanes + lane % lanes) * width;
  if (row >= graph.rows || feature >= features) return;
  const Pack<T, width> own = load_pack<width>(a + row * features + feature);
  const int stride = teams * gridDim.z;
  const int64_t first = int64_t{graph.row_ptr[row]} + blockIdx.z * teams + lane / lanes;
  const int64_t last = graph.row_ptr[row + 1];
  Entries next = fetch(graph, first, last, stride);
  for (int64_t k = first; k < last; k += unroll * stride) {
    const Entries entries = next;
    Pack<T, width> product[unroll] = {};
#pragma unroll
    for (int u = 0; u < unroll; ++u)
      if (k + u * stride < last)
        product[u] = load_pack<width>(b + entries.neighbor[u] * features + feature);
    next = fetch(graph, k + unroll * stride, last, stride);
#pragma unroll
    for (int u = 0; u < unroll; ++u) {
      if (k + u * stride >= last) continue;
#pragma unroll
      for (int v = 0; v < width; ++v) product[u].value[v] *= own.value[v];
      store_streaming(p + entries.edge[u] * features + feature, product[u]);
    }
  }
}

template <int width, typename T>
void convolve_width(const Adjacency& graph, const T* x, const T* w, T* y, int64_t features,
                    Stream stream) {
  const bool block_per_row = graph.rows <= few_rows;
  const RowShape shape = row_shape(features, width, block_per_row ? long_row_lanes : warp_lanes);
  const auto tiles = static_cast<unsigned>(shape.tiles);
  if (block_per_row)
    launch("convolve_long_rows", convolve_long_rows<T, width>,
           dim3(static_cast<unsigned>(graph.rows), tiles), dim3(long_row_threads), 0, stream, graph,
           x, w, y, features, shape.lanes);
  else
    launch("convolve_rows", convolve_rows<T, width>,
           dim3(blocks_for(graph.rows, row_threads / warp_lanes), tiles), dim3(row_threads), 0,
           stream, graph, x, w, y, features, shape.lanes);
}

template <int width, typename T>
void edge_product_width(const Adjacency& graph, const T* a, const T* b, T* p, int64_t features,
                        Stream stream) {
  const RowShape shape = row_shape(features, width);
  // Enough warps for a large GPU: where rows are few, several share one.
  constexpr int64_t wanted = 8192;
  const int64_t slices = std::clamp<int64_t>(wanted / (graph.rows * shape.tiles), 1, 64);
  const dim3 grid(blocks_for(graph.rows, row_threads / warp_lanes),
                  static_cast<unsigned>(shape.tiles), static_cast<unsigned>(slices));
  launch("edge_product_rows", edge_product_rows<T, width>, grid, dim3(row_threads), 0, stream,
         graph, a, b, p, features, shape.lanes);
}

}  // namespace

template <typename T>
void convolve_cuda(const Adjacency& graph, const T* x, const T* w, T* y, int64_t features,
                   Stream stream) {
  if (graph.rows == 0 || features == 0) return;
  if (row_width<T>(features, x, w, y) == 1)
    convolve_width<1>(graph, x, w, y, features, stream);
  else
    convolve_width<16 / sizeof(T)>(graph, x, w, y, features, stream);
}

template <typename T>
void edge_product_cuda(const Adjacency& graph, const T* a, const T* b, T* p, int64_t features,
                       Stream stream) {
  if (graph.rows == 0 || features == 0) return;
  if (row_width<T>(features, a, b, p) == 1)
    edge_product_width<1>(graph, a, b, p, features, stream);
  else
    edge_product_width<16 / sizeof(T)>(graph, a, b, p, features, stream);
}

#define MOLKERN_INSTANTIATE(T)                                                               \
  template void convolve_cuda<T>(const Adjacency&, const T*, const T*, T*, int64_t, Stream); \
  template void edge_product_cuda<T>(const Adjacency&, const T*, const T*, T*, int64_t, Stream);
MOLKERN_INSTANTIATE(float)
MOLKERN_INSTANTIATE(double)

}  // namespace molkern
