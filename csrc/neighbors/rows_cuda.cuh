// The second half of the search: the rows of the list. A group of `lanes` threads finds a
// receiver's neighbors among the atoms of the bins around it. For neighbors_cuda.cu only.
#pragma once

#include "neighbors/grid_cuda.cuh"

namespace molkern {

constexpr int row_threads = 128;
constexpr int row_blocks = 7;  // on a multiprocessor: with 72 registers a thread nothing is spilled

// One group's place in its block and warp, and the receiver it serves.
template <int lanes>
struct Group {
  int lane;
  unsigned mask;
  int64_t slot;  // in `sorted`

  __device__ Group()
      : lane(threadIdx.x % lanes),
        mask((lanes == 32 ? all_lanes : (1u << (lanes % 32)) - 1)
             << (threadIdx.x % 32 / lanes * lanes)),
        slot((int64_t{blockIdx.x} * row_threads + threadIdx.x) / lanes) {}
};

// The receiver, and the system it belongs to.
template <typename T>
struct Receiver {
  const Search<T>& search;
  const SystemGrid& grid;
  float4 own;
  int32_t atom;

  __device__ Receiver(const Search<T>& search, int64_t slot)
      : search(search),
        grid(search.grids[search.system[atom_at(search.sorted[slot])]]),
        own(search.sorted[slot]),
        atom(atom_at(own)) {}

  __device__ bool is(int32_t sender, int32_t m0, int32_t m1, int32_t m2) const {
    return sender == atom && m0 == 0 && m1 == 0 && m2 == 0;
  }

  // Shift of an edge from `sender`, whose wrapped image is displaced by m.
  __device__ void shift(int32_t sender, const int32_t* m, int32_t* s) const {
    for (int k = 0; k < 3; ++k)
      s[k] = m[k] - search.wraps[int64_t{3} * sender + k] + search.wraps[int64_t{3} * atom + k];
  }

  // By the definition. Few candidates come here.
  __device__ bool decide(int32_t sender, int32_t m0, int32_t m1, int32_t m2) const {
    const int32_t m[3] = {m0, m1, m2};
    int32_t s[3];
    shift(sender, m, s);
    const T* x = search.positions;
    return pair_in_range(x + int64_t{3} * atom, x + int64_t{3} * sender, s,
                         search.cell_of(search.system[atom]), search.cutoff * search.cutoff);
  }
};

// The bins, counted through all images, that may hold atoms within `radius` of y along axis k.
__device__ inline void bin_range(const SystemGrid& grid, int k, float y, float radius,
                                 int32_t* first, int32_t* last) {
  const int32_t bound = grid.images.bound[k], bins = grid.bins[k];
  const float lowest = static_cast<float>(-bound * bins);
  const float highest = static_cast<float>((bound + 1) * bins - 1);
  const float low = floorf((y - radius) * grid.scale[k]);
  const float high = floorf((y + radius) * grid.scale[k]);
  // Written so that NaN, which comes of infinite coordinates, gives all bins.
  *first = static_cast<int32_t>(low > lowest ? low : lowest);
  *last = static_cast<int32_t>(high < highest ? high : highest);
}

// The square of what is left of a radius beyond the gap between y and a bin. Negative: nothing.
__device__ inline float left_over(const SystemGrid& grid, int k, float y, int32_t bin,
                                  float radius_squared) {
  const float below = bin * grid.width[k] - y, above = y - (bin + 1) * grid.width[k];
  const float gap = fmaxf(fmaxf(below, above) - grid.margin, 0.0f);
  return radius_squared - gap * gap;
}

// A square root to a few ulps, which the slack of reach_squared allows for.
__device__ inline float root(float squared) { return squared * rsqrtf(fmaxf(squared, 1e-37f)); }

__device__ inline int32_t floor_divide(int32_t a, int32_t b) {
  const int32_t quotient = a / b;
  return quotient - (quotient * b > a);
}

// Candidates in one column of bins, which repeats along axis 2 once per image: places of `sorted`
// from begin + place on, where begin + period is begin again in the next image.
struct alignas(16) Column {
  int32_t begin, place, period, m2;
  int64_t count;
  int32_t m0, m1;
  float x, y, z;  // the vector from the receiver to the origin of image (m0, m1, 0)
};

template <int lanes>
struct RowShared {
  Column columns[row_threads / lanes][lanes];
};

// The columns that may hold neighbors: bins first0 .. along axis 0, and for each of them `width`
// along axis 1, which begin wherever the image that the bin belongs to puts them.
struct Window {
  int32_t first0;
  uint32_t width, columns;

  __device__ Window(const SystemGrid& grid, float4 own) {
    int32_t last0;
    bin_range(grid, 0, own.x, grid.reach, &first0, &last0);
    // How many bins 2 reach can touch, and one more for rounding.
    const float touched = 2.0f * grid.reach * grid.scale[1] + 3.0f;
    const float all = static_cast<float>((2 * grid.images.bound[1] + 1) * grid.bins[1]);
    width = static_cast<uint32_t>(fminf(all, touched));
    columns = last0 < first0 ? 0 : static_cast<uint32_t>(last0 - first0 + 1) * width;
  }
};

// False where the column is empty or too far away.
template <typename T>
__device__ bool make_column(const Receiver<T>& receiver, const Window& window, uint32_t index,
                            Column* column) {
  const SystemGrid& grid = receiver.grid;
  const float4 own = receiver.own;
  const int32_t b0 = window.first0 + static_cast<int32_t>(index / window.width);
  const int32_t m0 = floor_divide(b0, grid.bins[0]);
  const float y = own.y - m0 * grid.lattice[0][1];  // of the receiver, seen from image m0
  int32_t b1, last;
  bin_range(grid, 1, y, grid.reach, &b1, &last);
  b1 += static_cast<int32_t>(index % window.width);
  float left = left_over(grid, 0, own.x, b0, grid.reach_squared);
  left = left_over(grid, 1, y, b1, left);
  if (b1 > last || left < 0.0f) return false;
  const int32_t m1 = floor_divide(b1, grid.bins[1]);
  const float z = m0 * grid.lattice[0][2] + m1 * grid.lattice[1][2] - own.z;

  const int32_t bins = grid.bins[2];
  const int32_t row = (b0 - m0 * grid.bins[0]) * grid.bins[1] + b1 - m1 * grid.bins[1];
  const int32_t* start = receiver.search.bin_start + (grid.first_bin + row * bins);
  const int32_t begin = __ldg(start), period = __ldg(start + bins) - begin;
  int32_t first;
  bin_range(grid, 2, -z, root(left), &first, &last);
  if (period == 0 || first > last) return false;
  const int32_t m2 = floor_divide(first, bins), last_m2 = floor_divide(last, bins);
  const int32_t place = __ldg(start + (first - m2 * bins)) - begin;
  const int32_t end = __ldg(start + (last - last_m2 * bins) + 1) - begin;
  const int64_t count = int64_t{last_m2 - m2} * period + end - place;
  *column = {begin,
             place,
             period,
             m2,
             count,
             m0,
             m1,
             m0 * grid.lattice[0][0] - own.x,
             m1 * grid.lattice[1][1] - y,
             z};
  return count > 0;
}

template <int lanes, typename T, typename Visit>
__device__ void visit_column(const Receiver<T>& receiver, const Group<lanes>& group,
                             const Column& column, Visit visit) {
  const SystemGrid& grid = receiver.grid;
  const float image = grid.lattice[2][2], accept = grid.accept, reject = grid.reject;
  const float x = column.x, y = column.y, z = column.z;
  const int32_t period = column.period;
  const float4* sorted = receiver.search.sorted + column.begin;
  int32_t place = column.place + group.lane, m2 = column.m2;
  for (int64_t left = column.count; left > 0; left -= lanes, place += lanes) {
    if (place >= period) {
      m2 += place / period;
      place %= period;
    }
    bool inside = false;
    int32_t sender = 0;
    if (group.lane < left) {
      const float4 candidate = __ldg(sorted + place);
      sender = atom_at(candidate);
      const float dx = candidate.x + x, dy = candidate.y + y, dz = candidate.z + (z + m2 * image);
      const float squared = dx * dx + dy * dy + dz * dz;
      inside = !(squared > reject);
      if (inside && !(squared < accept)) inside = receiver.decide(sender, column.m0, column.m1, m2);
    }
    visit(inside, sender, column, m2);
  }
}

// Calls visit(inside, sender, column, m2) for all candidates; the lanes of a group together, with
// inside false where a lane has nothing. The receiver itself comes too.
template <int lanes, typename T, typename Visit>
__device__ void visit_candidates(const Receiver<T>& receiver, const Group<lanes>& group,
                                 Visit visit) {
  Column* columns = block_shared<RowShared<lanes>>().columns[threadIdx.x / lanes];
  const Window window(receiver.grid, receiver.own);
  for (uint32_t base = 0; base < window.columns; base += lanes) {
    // Each lane prepares a column, then all go through them one by one.
    const uint32_t index = base + group.lane;
    const bool some =
        index < window.columns && make_column(receiver, window, index, &columns[group.lane]);
    unsigned full = __ballot_sync(group.mask, some) >> (threadIdx.x % 32 - group.lane);
    __syncwarp(group.mask);
    for (; full; full &= full - 1)
      visit_column(receiver, group, columns[__ffs(static_cast<int>(full)) - 1], visit);
    __syncwarp(group.mask);
  }
}

// counts[receiver] = its number of neighbors.
template <int lanes, typename T>
__global__ void __launch_bounds__(row_threads, row_blocks)
    count_rows(const __grid_constant__ Search<T> search, int32_t* counts) {
  const Group<lanes> group;
  if (group.slot >= search.atoms) return;
  const Receiver<T> receiver(search, group.slot);
  uint64 count = 0;
  if (receiver.grid.error == no_error && receiver.grid.crowded) {
    count = uint64{1} << 31;
  } else if (receiver.grid.error == no_error) {
    uint32_t own_count = 0;
    visit_candidates<lanes>(receiver, group,
                            [&](bool inside, int32_t sender, const Column& column, int32_t m2) {
                              own_count += inside && !receiver.is(sender, column.m0, column.m1, m2);
                            });
    count = own_count;
    for (int step = lanes / 2; step; step /= 2) count += __shfl_xor_sync(group.mask, count, step);
  }
  if (group.lane != 0) return;
  counts[receiver.atom] = static_cast<int32_t>(count);
  atomicAdd(&search.row_tiles[receiver.atom / scan_tile], count);
}

// Counts to row_ptr, and the status.
template <typename T>
__global__ void __launch_bounds__(scan_threads)
    scan_rows(const __grid_constant__ Search<T> search, int32_t* row_ptr, SearchStatus* status) {
  ScanShared& shared = block_shared<ScanShared>();
  const uint64 edges = scan_block(shared, row_ptr, search.atoms, search.row_tiles);
  if (blockIdx.x != gridDim.x - 1) return;
  uint64 error = no_error;
  for (int32_t s = threadIdx.x; s < search.systems; s += scan_threads)
    error = min(error, search.grids[s].error);
  error = block_reduce(shared, error, Minimum());
  if (threadIdx.x != 0) return;
  if (error == no_error && edges > static_cast<uint64>(most_edges))
    error = make_error(SearchError::too_many_edges, 0);
  status->edges = static_cast<int64_t>(edges);
  status->error = error == no_error ? SearchError::none : static_cast<SearchError>(error >> 32);
  status->index = error == no_error ? 0 : static_cast<int32_t>(error & 0xffffffffu);
}

// A row's keys, sender << 32 | image code, while they are sorted: in shared memory, or where the
// row is too long for it, in the output's own place.
struct SharedKeys {
  uint64* keys;

  __device__ uint64 load(int32_t k) const { return keys[k]; }
  __device__ void store(int32_t k, uint64 key) const { keys[k] = key; }
};

struct OutputKeys {
  int32_t *senders, *codes;

  __device__ uint64 load(int32_t k) const {
    return uint64{static_cast<uint32_t>(senders[k])} << 32 | static_cast<uint32_t>(codes[k]);
  }
  __device__ void store(int32_t k, uint64 key) const {
    senders[k] = static_cast<int32_t>(key >> 32);
    codes[k] = static_cast<int32_t>(key & 0xffffffffu);
  }
};

template <typename Keys>
__device__ void sort_pair(const Keys& keys, int32_t low, int32_t high) {
  const uint64 a = keys.load(low), b = keys.load(high);
  if (a <= b) return;
  keys.store(low, b);
  keys.store(high, a);
}

// Batcher's bitonic sort with all comparisons upward: the first step of each merge compares
// mirrored places. So what lies beyond `count` counts as infinite, and any count will do.
template <int lanes, typename Keys>
__device__ void sort_keys(const Group<lanes>& group, const Keys& keys, int32_t count) {
  const uint32_t n = static_cast<uint32_t>(count);
  __syncwarp(group.mask);
  for (uint32_t merged = 1; merged < n; merged *= 2)  // length of what is sorted already
    for (uint32_t half = merged; half > 0; half /= 2) {
      for (uint32_t pair = group.lane;; pair += lanes) {
        const uint32_t within = pair & (half - 1), low = 2 * pair - within;
        if (low >= n) break;
        const uint32_t high = half == merged ? low + 2 * (half - within) - 1 : low + half;
        if (high < n) sort_pair(keys, low, high);
      }
      __syncwarp(group.mask);
    }
}

template <int lanes, typename T, typename Keys>
__device__ void write_row(const Receiver<T>& receiver, const Group<lanes>& group, const Keys& keys,
                          int32_t begin, int32_t count, const NeighborOutput& output) {
  const ImageCode& images = receiver.grid.images;
  int32_t found = 0;
  visit_candidates<lanes>(
      receiver, group, [&](bool inside, int32_t sender, const Column& column, int32_t m2) {
        inside = inside && !receiver.is(sender, column.m0, column.m1, m2);
        const unsigned hits = __ballot_sync(group.mask, inside);
        const unsigned before = hits & ((1u << (threadIdx.x % 32)) - 1);
        if (inside)
          keys.store(found + __popc(before), uint64{static_cast<uint32_t>(sender)} << 32 |
                                                 images.pack(column.m0, column.m1, m2));
        found += __popc(hits);
      });
  sort_keys(group, keys, count);
  for (int32_t k = group.lane; k < count; k += lanes) {
    const uint64 key = keys.load(k);
    const int32_t sender = static_cast<int32_t>(key >> 32);
    output.senders[begin + k] = sender;
    output.receivers[begin + k] = receiver.atom;
    if (!output.shifts) continue;
    int32_t m[3];
    images.unpack(static_cast<uint32_t>(key), m);
    receiver.shift(sender, m, output.shifts + 3 * (int64_t{begin} + k));
  }
}

__device__ inline bool holds_edges(const SearchStatus& status, int64_t capacity) {
  return status.error == SearchError::none && status.edges <= capacity;
}

// The edges, but for `reverse`. Each group has room for `keys_per_row` keys in shared memory.
template <int lanes, typename T>
__global__ void __launch_bounds__(row_threads, row_blocks)
    write_rows(const __grid_constant__ Search<T> search, const int32_t* row_ptr,
               const SearchStatus* status, NeighborOutput output, int32_t keys_per_row) {
  const Group<lanes> group;
  if (!holds_edges(*status, output.capacity) || group.slot >= search.atoms) return;
  const Receiver<T> receiver(search, group.slot);
  const int32_t begin = row_ptr[receiver.atom], count = row_ptr[receiver.atom + 1] - begin;
  if (count == 0) return;
  if (count <= keys_per_row) {
    uint64* keys = dynamic_shared<uint64>() + threadIdx.x / lanes * keys_per_row;
    write_row(receiver, group, SharedKeys{keys}, begin, count, output);
  } else {
    write_row(receiver, group, OutputKeys{output.senders + begin, output.reverse + begin}, begin,
              count, output);
  }
}

// First place in [begin, end) whose sender is at least (or, for `after`, greater than) `sender`.
__device__ inline int32_t search_row(const int32_t* senders, int32_t begin, int32_t end,
                                     int32_t sender) {
  while (begin < end) {
    const int32_t middle = begin + (end - begin) / 2;
    if (senders[middle] < sender)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

// `reverse`, and the padding. The images of a pair of atoms stand side by side in both rows, in one
// in the order of their shifts, in the other in the opposite order.
__global__ void __launch_bounds__(row_threads)
    finish_edges(const int32_t* row_ptr, const SearchStatus* status, NeighborOutput output) {
  const int64_t edge = int64_t{blockIdx.x} * row_threads + threadIdx.x;
  if (edge >= output.capacity) return;
  if (!holds_edges(*status, output.capacity) || edge >= status->edges) {
    output.senders[edge] = output.receivers[edge] = output.reverse[edge] = -1;
    for (int k = 0; output.shifts && k < 3; ++k) output.shifts[3 * edge + k] = 0;
    return;
  }
  const int32_t sender = output.senders[edge], receiver = output.receivers[edge];
  const int32_t end = row_ptr[receiver + 1], e = static_cast<int32_t>(edge);
  int32_t last = e;  // image of this pair
  if (e + 1 < end && output.senders[e + 1] == sender)
    last = search_row(output.senders, e + 1, end, sender + 1) - 1;
  output.reverse[edge] =
      search_row(output.senders, row_ptr[sender], row_ptr[sender + 1], receiver) + last - e;
}

}  // namespace molkern
