// Value and gradient by features and distances: rows of the graph, entry by entry. The gradient of
// the table is in spline_table_cuda.cu.
#include <algorithm>

#include "splines/spline_device.cuh"

namespace molkern {
namespace {

constexpr int64_t wanted_warps = 8192;  // as many as a large GPU holds

// The entries of a row, or a slice of them, that a warp takes, and the features that its lane does.
// Teams of `lanes` lanes take entries in turn.
struct RowPlace {
  int64_t row, first, last, feature;
  int lane, warp, team, teams, slice;
  bool active;

  __device__ __forceinline__ RowPlace(const Adjacency& graph, int64_t features, int64_t tile,
                                      int width, int lanes, int slices)
      : lane(threadIdx.x % warp_lanes), warp(threadIdx.x / warp_lanes) {
    team = lane / lanes;
    teams = warp_lanes / lanes;
    slice = warp % slices;
    row = (int64_t{blockIdx.x} * spline_warps + warp) / slices;
    feature = (tile * lanes + lane % lanes) * width;
    active = row < graph.rows && feature < features;
    first = last = 0;
    if (row < graph.rows) {  // no return: warps of a block may share a row, and meet at its end
      const int64_t begin = graph.row_ptr[row], count = graph.row_ptr[row + 1] - begin;
      first = begin + count * slice / slices;
      last = begin + count * (slice + 1) / slices;
    }
  }
};

template <typename Entry, typename T>
struct RowShared {
  Entry entries[spline_warps][warp_lanes];
  T part[spline_warps][512 / sizeof(T)];  // a row's sums, or a warp's parts of gd
};

// What is on its way while the entries before are worked on.
template <typename T>
struct NextEntry {
  int32_t neighbor, edge;
  T d, change;

  __device__ __forceinline__ NextEntry(const Adjacency& graph, const T* distances, const T* changes,
                                       int64_t k, int64_t last)
      : neighbor(0), edge(0), d(0), change(0) {
    if (k >= last) return;
    neighbor = graph.neighbors[k];
    edge = static_cast<int32_t>(graph.edge(k));
    d = distances[edge];
    if (changes) change = changes[edge];
  }
};

// Where a lane's entry is among those that are not zero, and their number.
struct Placed {
  int place, count;
  bool counts;

  __device__ __forceinline__ Placed(bool counts_in, int lane) : counts(counts_in) {
    const unsigned all = __ballot_sync(full_warp, counts);
    place = __popc(all & ((1u << lane) - 1));
    count = __popc(all);
  }
};

// Adds the sums of teams and of warps that share a row, in a fixed order, and stores them.
template <int width, typename T>
__device__ __forceinline__ void store_row(const RowPlace& at, Pack<T, width>& sum, int lanes,
                                          int slices, T (*part)[512 / sizeof(T)], T* y,
                                          int64_t features) {
  sum_teams(sum, lanes);
  if (slices > 1) {
    if (at.team == 0)
      for (int v = 0; v < width; ++v) part[at.warp][at.lane * width + v] = sum.value[v];
    __syncthreads();
    if (at.slice == 0 && at.team == 0)
      for (int s = 1; s < slices; ++s)
        for (int v = 0; v < width; ++v) sum.value[v] += part[at.warp + s][at.lane * width + v];
  }
  if (at.active && at.team == 0 && at.slice == 0)
    store_pack(y + at.row * features + at.feature, sum);
}

// y, or gg: one or several warps for every row and tile of features.
// Must move: x and y once, 8 or 12 bytes of indices and distances per entry and tile. Per entry and
// feature p + 1 coefficients and a feature come from the caches, 4 (p + 2) bytes of floats, for
// 2 (p + 2) FLOP: the caches bound it. Along a direction up to twice the bytes and 3 times the
// FLOP.
template <typename T, int degree, bool directed, int width>
__global__ void __launch_bounds__(spline_threads, spline_blocks)
    spline_value_rows(Adjacency graph, SplineGrid<T> grid, const T* __restrict__ table,
                      const T* __restrict__ distances, const T* __restrict__ x,
                      SplineDirection<T> along, T* __restrict__ y, int64_t features, int lanes,
                      int slices) {
  using Entry = SplineEntry<degree, directed ? 1 : 0, T>;
  RowShared<Entry, T>& shared = block_shared<RowShared<Entry, T>>();
  const RowPlace at(graph, features, blockIdx.y, width, lanes, slices);
  Entry* const entries = shared.entries[at.warp];
  const T* const changes = directed ? along.distances : nullptr;
  Pack<T, width> sum = {};
  NextEntry<T> next(graph, distances, changes, at.first + at.lane, at.last);
  for (int64_t k = at.first; k < at.last; k += warp_lanes) {
    const Placed own(k + at.lane < at.last && !spline_is_zero(grid, next.d), at.lane);
    if (own.counts) {
      const int32_t interval = spline_interval(grid, next.d);
      entries[own.place].fill(next.neighbor, interval, grid, next.d, interval, next.change);
    }
    next = NextEntry<T>(graph, distances, changes, k + warp_lanes + at.lane, at.last);
    __syncwarp();
    if (at.active) {
      for (int e = at.team; e < own.count; e += at.teams) {
        const Entry entry = entries[e];
        const int64_t from = entry.rows[0] * features + at.feature;
        const int64_t first = entry.rows[1] * features + at.feature;
        T w[directed ? 2 : 1][width];
        splines_at(table + first, features, entry.weight, w);
        const Pack<T, width> neighbor = load_pack<width>(x + from);
        if constexpr (!directed) {
#pragma unroll
          for (int v = 0; v < width; ++v) sum.value[v] += w[0][v] * neighbor.value[v];
        } else {
          T change[1][width] = {};
          if (along.table) splines_at(along.table + first, features, entry.weight, change);
          Pack<T, width> moved = {};
          if (along.x) moved = load_pack<width>(along.x + from);
#pragma unroll
          for (int v = 0; v < width; ++v)
            sum.value[v] += w[0][v] * moved.value[v] +
                            (entry.change * w[1][v] + change[0][v]) * neighbor.value[v];
        }
      }
    }
    __syncwarp();
  }
  store_row<width>(at, sum, lanes, slices, shared.part, y, features);
}

// gx of one tile of features, and its part of gd on top of `base`, which may be gd: tiles follow
// each other, so that gd is summed in a fixed order and needs no room but its own.
// Must move: x, g and gx once; per entry and tile 12 bytes of indices and distances and gd, read
// and written. Per entry and feature p + 1 coefficients and a feature come from the caches for
// 2 (2 p + 5) FLOP. Along a direction up to twice the bytes and FLOP.
template <typename T, int degree, bool directed, int width>
__global__ void __launch_bounds__(spline_threads, spline_blocks)
    spline_grad_rows(Adjacency graph, SplineGrid<T> grid, const T* __restrict__ table,
                     const T* __restrict__ distances, const T* __restrict__ x,
                     const T* __restrict__ g, SplineDirection<T> along, const T* base,
                     T* __restrict__ gx, T* gd, int64_t features, int64_t tile, int lanes,
                     int slices) {
  using Entry = SplineEntry<degree, directed ? 2 : 1, T>;
  RowShared<Entry, T>& shared = block_shared<RowShared<Entry, T>>();
  const RowPlace at(graph, features, tile, width, lanes, slices);
  Entry* const entries = shared.entries[at.warp];
  const T* const changes = directed ? along.distances : nullptr;
  T* const parts = shared.part[at.warp];
  Pack<T, width> sum = {}, own_x = {}, own_change = {};
  if (at.active) {
    own_x = load_pack<width>(x + at.row * features + at.feature);
    if (directed && along.x)
      own_change = load_pack<width>(along.x + at.row * features + at.feature);
  }
  NextEntry<T> next(graph, distances, changes, at.first + at.lane, at.last);
  for (int64_t k = at.first; k < at.last; k += warp_lanes) {
    const Placed own(k + at.lane < at.last && !spline_is_zero(grid, next.d), at.lane);
    const int32_t edge = next.edge;
    if (own.counts) {
      const int32_t interval = spline_interval(grid, next.d);
      entries[own.place].fill(next.neighbor, interval, grid, next.d, interval, next.change);
    }
    next = NextEntry<T>(graph, distances, changes, k + warp_lanes + at.lane, at.last);
    __syncwarp();
    for (int turn = 0; turn < own.count; turn += at.teams) {
      const int e = turn + at.team;
      T part = 0;
      if (at.active && e < own.count) {
        const Entry entry = entries[e];
        const int64_t first = entry.rows[1] * features + at.feature;
        const Pack<T, width> other = load_pack<width>(g + entry.rows[0] * features + at.feature);
        T w[2][width];
        if constexpr (!directed) {
          splines_at(table + first, features, entry.weight, w);
#pragma unroll
          for (int v = 0; v < width; ++v) {
            sum.value[v] += w[0][v] * other.value[v];
            part += w[1][v] * (other.value[v] * own_x.value[v]);
          }
        } else {
          splines_at(table + first, features, entry.weight + 1, w);  // slope and curvature
          T change[2][width] = {};
          if (along.table) splines_at(along.table + first, features, entry.weight, change);
#pragma unroll
          for (int v = 0; v < width; ++v) {
            sum.value[v] += (entry.change * w[0][v] + change[0][v]) * other.value[v];
            part += (own_change.value[v] * w[0][v] +
                     own_x.value[v] * (entry.change * w[1][v] + change[1][v])) *
                    other.value[v];
          }
        }
      }
      part = sum_lanes(part, 1, lanes);
      if (at.lane % lanes == 0 && e < own.count) parts[e] = part;
    }
    __syncwarp();
    if (k + at.lane < at.last)
      gd[edge] = (base ? base[edge] : T(0)) + (own.counts ? parts[own.place] : T(0));
  }
  __syncwarp();  // the parts were read, sums take their place
  store_row<width>(at, sum, lanes, slices, shared.part, gx, features);
}

// Warps that share a row, so that a large GPU has enough.
int row_slices(int64_t rows, int tiles) {
  int slices = 1;
  while (slices < spline_warps && rows * tiles * slices < wanted_warps) slices *= 2;
  return slices;
}

unsigned row_blocks(int64_t rows, int slices) { return blocks_for(rows * slices, spline_warps); }

}  // namespace

template <typename T>
void spline_value_cuda(const Adjacency& receivers, const SplineFilters<T>& filters, const T* x,
                       const SplineDirection<T>* direction, T* y, Stream stream) {
  const int64_t features = filters.features;
  if (receivers.rows == 0 || features == 0) return;
  const SplineDirection<T> along = direction ? *direction : SplineDirection<T>{};
  const int width = row_width<T>(features, filters.table, x, along.x, along.table, y);
  const RowShape shape = row_shape(features, width, line_lanes<T>(width));
  const int slices = row_slices(receivers.rows, shape.tiles);
  with_spline_kind<T>(
      filters.degree, direction, width, [&](auto degree, auto directed, auto fixed_width) {
        launch("spline_value_rows", spline_value_rows<T, degree(), directed(), fixed_width()>,
               dim3(row_blocks(receivers.rows, slices), static_cast<unsigned>(shape.tiles)),
               dim3(spline_threads), 0, stream, receivers, filters.grid, filters.table,
               filters.distances, x, along, y, features, shape.lanes, slices);
      });
}

template <typename T>
void spline_grad_cuda(const Adjacency& senders, const SplineFilters<T>& filters, const T* x,
                      const T* g, const SplineDirection<T>* direction, const T* added, T* gx, T* gd,
                      Stream stream) {
  if (senders.rows == 0) return;
  const int64_t features = filters.features;
  const SplineDirection<T> along = direction ? *direction : SplineDirection<T>{};
  const int width = row_width<T>(features, filters.table, x, g, along.x, along.table, gx);
  // Few rows leave the caches room, and take fewer launches with wide tiles.
  const bool few = senders.rows < wanted_warps / spline_warps;
  const RowShape shape = row_shape(features, width, few ? warp_lanes : line_lanes<T>(width));
  const int slices = row_slices(senders.rows, 1);
  with_spline_kind<T>(
      filters.degree, direction, width, [&](auto degree, auto directed, auto fixed_width) {
        for (int tile = 0; tile < std::max(shape.tiles, 1); ++tile)  // without features gd is due
          launch("spline_grad_rows", spline_grad_rows<T, degree(), directed(), fixed_width()>,
                 dim3(row_blocks(senders.rows, slices)), dim3(spline_threads), 0, stream, senders,
                 filters.grid, filters.table, filters.distances, x, g, along, tile ? gd : added, gx,
                 gd, features, int64_t{tile}, shape.lanes, slices);
      });
}

#define MOLKERN_INSTANTIATE(T)                                                                     \
  template void spline_value_cuda<T>(const Adjacency&, const SplineFilters<T>&, const T*,          \
                                     const SplineDirection<T>*, T*, Stream);                       \
  template void spline_grad_cuda<T>(const Adjacency&, const SplineFilters<T>&, const T*, const T*, \
                                    const SplineDirection<T>*, const T*, T*, T*, Stream);
MOLKERN_INSTANTIATE(float)
MOLKERN_INSTANTIATE(double)

}  // namespace molkern
