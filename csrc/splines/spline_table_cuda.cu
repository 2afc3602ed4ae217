// The gradient of the table. Edges come by interval and are dealt to warps in equal slices, however
// many lie in an interval; a warp leaves the sums of every interval that its slice meets, a piece.
// Slices and intervals both ascend along the edges, so that slice s and interval m meet in piece
// s + m, of which there are fewer than slices and intervals together. A second kernel adds the
// pieces that a row of the table gets, in order.
#include <algorithm>

#include "splines/spline_device.cuh"

namespace molkern {
namespace {

constexpr int64_t most_slices = 1024;  // with a few tiles each, what a large GPU holds
constexpr int64_t least_edges = 32;    // of a slice

struct Slices {
  int64_t edges;  // of each
  int64_t count;
};

Slices table_slices(int64_t edges) {
  const int64_t each = std::max((edges + most_slices - 1) / most_slices, least_edges);
  return {each, (edges + each - 1) / each};
}

// The interval that place k of the edges lies in, from a guess that is right but for rounding.
__device__ __forceinline__ int32_t interval_at(const SplineBins& bins, int64_t k, int32_t guess) {
  while (bins.ptr[guess] > k) --guess;
  while (bins.ptr[guess + 1] <= k) ++guess;
  return guess;
}

// What is on its way while the edges before are worked on.
template <typename T>
struct NextEdge {
  int32_t sender, receiver;
  T d, change;

  __device__ __forceinline__ NextEdge(const SplineBins& bins, const T* distances, const T* changes,
                                      int64_t k, int64_t last)
      : sender(0), receiver(0), d(0), change(0) {
    if (k >= last) return;
    const int64_t edge = bins.edges[k];
    sender = bins.senders[k];
    receiver = bins.receivers[k];
    d = distances[edge];
    if (changes) change = changes[edge];
  }
};

template <typename Entry>
struct TableShared {
  Entry entries[spline_warps][warp_lanes];
};

// pieces[s + m, k, f] = sum over edges of slice s in interval m of b_k x[sender, f]
// g[receiver, f], or of the sum along a direction: a warp for every slice and tile of features.
// Must move: pieces once, at most (1024 + intervals) (p + 1) F numbers; 16 bytes of indices and
// distances per edge and tile. Per edge and feature x and g come from the caches, 8 bytes of floats
// for 2 (p + 2) FLOP: both bound it. Along a direction 12 bytes for 4 (p + 2) FLOP.
template <typename T, int degree, bool directed, int width>
__global__ void __launch_bounds__(spline_threads, spline_blocks)
    spline_table_pieces(SplineBins bins, SplineGrid<T> grid, const T* __restrict__ distances,
                        const T* __restrict__ x, const T* __restrict__ g, SplineDirection<T> along,
                        T* __restrict__ pieces, int64_t features, int lanes, int64_t slice_edges) {
  using Entry = SplineEntry<degree, directed ? 1 : 0, T>;
  const int lane = threadIdx.x % warp_lanes, team = lane / lanes, teams = warp_lanes / lanes;
  const int64_t slice = int64_t{blockIdx.x} * spline_warps + threadIdx.x / warp_lanes;
  const int64_t feature = (int64_t{blockIdx.y} * lanes + lane % lanes) * width;
  const int64_t end = min(slice * slice_edges + slice_edges, int64_t{bins.ptr[grid.intervals]});
  int64_t k = slice * slice_edges;
  if (k >= end) return;  // the whole warp
  Entry* const entries = block_shared<TableShared<Entry>>().entries[threadIdx.x / warp_lanes];
  const T* const changes = directed ? along.distances : nullptr;
  int32_t m = interval_at(bins, k, spline_interval(grid, distances[bins.edges[k]]));
  NextEdge<T> next(bins, distances, changes, k + lane, end);
  for (; k < end; ++m) {
    const int64_t last = min(end, int64_t{bins.ptr[m + 1]});
    if (k == last) continue;  // an empty interval
    Pack<T, width> sum[degree + 1] = {};
    while (k < last) {
      const int count = static_cast<int>(min(last - k, int64_t{warp_lanes}));
      if (lane < count)
        entries[lane].fill(next.sender, next.receiver, grid, next.d, m, next.change);
      k += count;
      next = NextEdge<T>(bins, distances, changes, k + lane, end);
      __syncwarp();
      if (feature < features) {
#pragma unroll(directed ? 2 : 4)
        for (int e = team; e < count; e += teams) {
          const Entry entry = entries[e];
          const int64_t from = entry.rows[0] * features + feature;
          const Pack<T, width> other = load_pack<width>(g + entry.rows[1] * features + feature);
          if constexpr (!directed) {
            const Pack<T, width> neighbor = load_pack<width>(x + from);
#pragma unroll
            for (int v = 0; v < width; ++v) {
              const T both = neighbor.value[v] * other.value[v];
#pragma unroll
              for (int j = 0; j <= degree; ++j) sum[j].value[v] += entry.weight[0][j] * both;
            }
          } else {
            Pack<T, width> neighbor = {}, moved = {};
            if (changes) neighbor = load_pack<width>(x + from);
            if (along.x) moved = load_pack<width>(along.x + from);
#pragma unroll
            for (int v = 0; v < width; ++v) {
              const T steep = entry.change * neighbor.value[v] * other.value[v];
              const T changed = moved.value[v] * other.value[v];
#pragma unroll
              for (int j = 0; j <= degree; ++j)
                sum[j].value[v] += entry.weight[1][j] * steep + entry.weight[0][j] * changed;
            }
          }
        }
      }
      __syncwarp();
    }
    T* const piece = pieces + (slice + m) * (degree + 1) * features + feature;
#pragma unroll
    for (int j = 0; j <= degree; ++j) {
      sum_teams(sum[j], lanes);
      if (feature < features && team == 0) store_pack(piece + j * features, sum[j]);
    }
  }
}

// gC[r, f]: the pieces of intervals r - p ... r, whose coefficient number r - m is row r; a thread
// for every number. Must move: the pieces that exist and gC once, an addition each.
template <typename T>
__global__ void __launch_bounds__(spline_threads, spline_blocks)
    spline_table_rows(SplineBins bins, int32_t intervals, int degree, const T* __restrict__ pieces,
                      T* __restrict__ gc, int64_t features, int64_t slice_edges) {
  const int64_t row = blockIdx.x, feature = int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (feature >= features) return;
  T sum = 0;
  for (int64_t m = max(row - degree, int64_t{0}); m <= min(row, int64_t{intervals - 1}); ++m) {
    const int64_t begin = bins.ptr[m], end = bins.ptr[m + 1];
    if (begin == end) continue;
    const int64_t last = (end - 1) / slice_edges;
#pragma unroll 4
    for (int64_t slice = begin / slice_edges; slice <= last; ++slice)
      sum += pieces[((slice + m) * (degree + 1) + row - m) * features + feature];
  }
  gc[row * features + feature] = sum;
}

}  // namespace

int64_t spline_table_workspace_cuda(int64_t edges, int64_t intervals, int degree,
                                    int64_t features) {
  return (table_slices(edges).count + intervals) * (degree + 1) * features;
}

template <typename T>
void spline_table_grad_cuda(const SplineBins& bins, const SplineFilters<T>& filters, const T* x,
                            const T* g, const SplineDirection<T>* direction, T* gc, T* workspace,
                            Stream stream) {
  const int64_t features = filters.features;
  if (features == 0) return;
  const SplineDirection<T> along = direction ? *direction : SplineDirection<T>{};
  const Slices slices = table_slices(bins.count);
  const int width = row_width<T>(features, x, g, along.x, workspace);
  const RowShape shape = row_shape(features, width, line_lanes<T>(width));
  if (slices.count > 0)
    with_spline_kind<T>(
        filters.degree, direction, width, [&](auto degree, auto directed, auto fixed_width) {
          launch("spline_table_pieces", spline_table_pieces<T, degree(), directed(), fixed_width()>,
                 dim3(blocks_for(slices.count, spline_warps), static_cast<unsigned>(shape.tiles)),
                 dim3(spline_threads), 0, stream, bins, filters.grid, filters.distances, x, g,
                 along, workspace, features, shape.lanes, slices.edges);
        });
  const int64_t rows = int64_t{filters.grid.intervals} + filters.degree;
  const auto threads = static_cast<unsigned>(
      std::min<int64_t>((features + warp_lanes - 1) / warp_lanes * warp_lanes, spline_threads));
  launch("spline_table_rows", spline_table_rows<T>,
         dim3(static_cast<unsigned>(rows), blocks_for(features, threads)), dim3(threads), 0, stream,
         bins, filters.grid.intervals, filters.degree, workspace, gc, features, slices.edges);
}

#define MOLKERN_INSTANTIATE(T)                                                                  \
  template void spline_table_grad_cuda<T>(const SplineBins&, const SplineFilters<T>&, const T*, \
                                          const T*, const SplineDirection<T>*, T*, T*, Stream);
MOLKERN_INSTANTIATE(float)
MOLKERN_INSTANTIATE(double)

}  // namespace molkern
