// The first half of the search: each system's frame and bins, and its atoms wrapped and sorted into
// them. For neighbors_cuda.cu only.
//
// A system's bins are numbered with axis 2 fastest, so that the bins along it, a column, hold
// consecutive places of `sorted`. A system of `atoms` atoms has room for 2 atoms + 1 bins, the
// first at 2 (its first atom) + (its index): nothing about the bins needs to be known on the host.
#pragma once

#include "neighbors/pair.h"
#include "neighbors/scan_cuda.cuh"

namespace molkern {

// What the kernels know of one system. Lengths in float32 belong to the wrapped coordinates, which
// are relative to `low`.
struct SystemGrid {
  Frame frame;
  ImageCode images;
  bool framed;       // whether `frame` may be used
  uint64 error;      // SearchError << 32 | index; no_error if all is well. Lower is reported first
  uint64 lowest[3];  // of the wrapped coordinates, as ordered_bits
  uint64 highest[3];
  double low[3];  // where bins begin; zero along periodic axes
  double bins_per_length[3];
  int32_t bins[3];
  int32_t first_bin;
  float scale[3];  // bins_per_length
  float width[3];  // of a bin
  float lattice[3][3];
  float reach;           // the cutoff with a margin for all errors of rounding in float32
  float reach_squared;   // and some more, as it is subtracted from
  bool crowded;          // has more edges than can be counted
  float accept, reject;  // a squared distance in float32 below / above which is certain
  float margin;
};

constexpr uint64 no_error = ~uint64{0};

__host__ __device__ constexpr uint64 make_error(SearchError error, int64_t index) {
  return static_cast<uint64>(error) << 32 | static_cast<uint64>(index);
}

// All that the kernels work on; pointers into the query and the workspace.
template <typename T>
struct Search {
  const T* positions;
  const T* cell;
  const uint8_t* pbc;
  const int32_t* system_ptr;
  int32_t atoms;
  int32_t systems;
  double cutoff;
  SystemGrid* grids;   // [systems]
  int32_t* system;     // [atoms] system of each atom
  int32_t* wraps;      // [atoms, 3]
  float4* sorted;      // [atoms] wrapped coordinates and index (as bits), bin after bin
  float4* wrapped;     // [atoms] the same in the order of atoms; only with bins
  int32_t* bin;        // [atoms]
  int32_t* rank;       // [atoms] place within the bin, in no particular order
  int32_t* bin_start;  // [bin_count + 1]; counts at first
  int64_t bin_count;
  uint64* bin_tiles;  // sums of the counts, see scan_cuda.cuh
  uint64* row_tiles;  // the same of the rows of the list
  int64_t bin_tile_count, row_tile_count;
  unsigned* finished;  // blocks that are done

  // A system's atoms. Together the systems have all atoms, also where system_ptr, made of a batch
  // that is not sorted, does not say so: that error is reported elsewhere and must do no harm here.
  __device__ int32_t first_atom(int32_t s) const { return s == 0 ? 0 : system_ptr[s]; }
  __device__ int32_t end_atom(int32_t s) const {
    return s + 1 == systems ? atoms : system_ptr[s + 1];
  }

  __device__ const T* cell_of(int32_t s) const { return cell ? cell + int64_t{9} * s : nullptr; }
};

// Maps numbers to integers of the same order.
__device__ inline uint64 ordered_bits(double x) {
  const uint64 bits = static_cast<uint64>(__double_as_longlong(x)), sign = uint64{1} << 63;
  return bits & sign ? ~bits : bits | sign;
}
__device__ inline double from_ordered_bits(uint64 bits) {
  const uint64 sign = uint64{1} << 63;
  return __longlong_as_double(static_cast<long long>(bits & sign ? bits ^ sign : ~bits));
}

template <typename T>
__device__ void start_system(const Search<T>& search, int32_t s) {
  SystemGrid& grid = search.grids[s];
  const uint8_t* pbc = search.pbc ? search.pbc + int64_t{3} * s : nullptr;
  const FrameError error = make_frame(search.cell_of(s), pbc, &grid.frame);
  grid.framed = error == FrameError::none;
  grid.error = grid.framed                       ? no_error
               : error == FrameError::not_finite ? make_error(SearchError::cell_not_finite, s)
                                                 : make_error(SearchError::cell_singular, s);
  for (int k = 0; k < 3; ++k) {
    grid.lowest[k] = ~uint64{0};
    grid.highest[k] = 0;
  }
}

// The cutoff's certain and possible ranges. Wrapped coordinates are below `size` in length and
// images move by at most `moved`. In float32 a component of a vector between atoms is off by less
// than 8 ulps of their sum (two coordinates, three products and four sums are rounded); in float64
// the coordinates before wrapping, up to `unwrapped`, count. Twice that bounds the vector's length.
__device__ inline void set_cutoff(SystemGrid* grid, double cutoff, double size, double moved,
                                  double unwrapped) {
  const double single = 8.0 / (1 << 24) * (size + moved + cutoff);
  const double exact = (unwrapped + moved) / (1ll << 48);
  const double margin = 2.0 * (single + exact);
  const double far = cutoff + margin, near = cutoff - margin;
  const double rounding = 1.0 / (1 << 20), underflow = 1e-36;
  grid->margin = static_cast<float>(margin * (1.0 + rounding));
  grid->reach = static_cast<float>(far * (1.0 + rounding));
  grid->reach_squared = static_cast<float>(far * far * (1.0 + 8.0 * rounding) + underflow);
  grid->reject = static_cast<float>(far * far * (1.0 + rounding) + underflow);
  grid->accept =
      near > 0.0 ? static_cast<float>(near * near * (1.0 - rounding) - underflow) : -1.0f;
}

// Numbers of bins: about as wide as the cutoff across a column, or half where it is crowded; and a
// quarter along it, where more bins cost nothing. Halved until there is room, and until those of
// all images can be counted, exactly, in float32 along each axis and in 31 bits across columns.
__device__ inline void set_bins(SystemGrid* grid, double cutoff, const double* length, double atoms,
                                int32_t room) {
  double volume = 1.0, images[3];
  for (int k = 0; k < 3; ++k) volume *= fmax(length[k], cutoff) / cutoff;
  const double across = atoms > 40.0 * volume ? 2.0 : 1.0;
  int32_t* bins = grid->bins;
  for (int k = 0; k < 3; ++k) {
    const double wanted = floor(length[k] / cutoff * (k == 2 ? 4.0 : across));
    images[k] = 2.0 * grid->images.bound[k] + 1.0;
    bins[k] = static_cast<int32_t>(fmin(fmax(wanted, 1.0), static_cast<double>(room)));
    while (bins[k] > 1 && bins[k] * images[k] > 1 << 23) bins[k] /= 2;
  }
  while (static_cast<double>(bins[0]) * bins[1] * bins[2] > room ||
         bins[0] * images[0] * bins[1] * images[1] > 2147483647.0) {
    const int k = bins[0] > bins[1] ? 0 : 1;  // the larger
    bins[bins[2] > bins[k] ? 2 : k] /= 2;
  }
}

// Once all atoms are known: the range of images, of bins, and the bounds of rounding.
template <typename T>
__device__ void finish_system(const Search<T>& search, int32_t s, bool with_bins) {
  SystemGrid& grid = search.grids[s];
  const Frame& frame = grid.frame;
  const int32_t first = search.first_atom(s), atoms = search.end_atom(s) - first;
  if (atoms == 0 || __ldcg(&grid.error) != no_error) return;
  double extent[3], length[3], spread = 0.0, unwrapped = 0.0, moved = 0.0;
  for (int k = 0; k < 3; ++k) {
    // Other blocks wrote these; this one may hold older values in its cache.
    const double low = from_ordered_bits(__ldcg(&grid.lowest[k]));
    const double high = from_ordered_bits(__ldcg(&grid.highest[k]));
    extent[k] = high - low;
    spread = fmax(spread, extent[k]);
    grid.low[k] = frame.periodic[k] ? 0.0 : low;
    length[k] = frame.periodic[k] ? frame.lattice[k][k] : extent[k];
    unwrapped +=
        fmax(fabs(low), fabs(high)) + max_wraps * sqrt(dot3(frame.lattice[k], frame.lattice[k]));
  }
  // The slack covers wrapping's rounding, so that no neighbor's image has no code.
  const double slack = (spread + search.cutoff) / (1 << 17) + unwrapped / (1ll << 44);
  if (!image_code(frame, search.cutoff + slack, extent, &grid.images)) {
    grid.error = make_error(SearchError::shift_overflow, first);
    return;
  }
  for (int k = 0; k < 3; ++k) {
    moved += grid.images.bound[k] * sqrt(dot3(frame.lattice[k], frame.lattice[k]));
    for (int l = 0; l < 3; ++l) grid.lattice[k][l] = static_cast<float>(frame.lattice[k][l]);
  }
  set_cutoff(&grid, search.cutoff, sqrt(dot3(length, length)), moved, unwrapped);
  grid.crowded = fewest_edges(frame, search.cutoff - slack, extent, atoms) > most_edges;
  for (int k = 0; k < 3; ++k) grid.bins[k] = 1;
  if (with_bins) set_bins(&grid, search.cutoff, length, atoms, 2 * atoms + 1);
  for (int k = 0; k < 3; ++k) {
    grid.bins_per_length[k] = length[k] > 0.0 ? grid.bins[k] / length[k] : 0.0;
    grid.scale[k] = static_cast<float>(grid.bins_per_length[k]);
    grid.width[k] = static_cast<float>(length[k] / grid.bins[k]);
  }
  grid.first_bin = with_bins ? 2 * first + s : s;
}

__device__ inline bool is_finite(double x) { return x - x == 0.0; }

// Adds an atom to the bounds of system s; s < 0 for a thread without one. All lanes must call.
template <typename T>
__device__ void bound_atom(const Search<T>& search, int32_t s, int32_t atom) {
  double y[3];
  uint64 low[3], high[3], error = no_error;
  bool known = false;
  if (s >= 0) {
    const T* x = search.positions + int64_t{3} * atom;
    int32_t w[3];
    if (!(is_finite(x[0]) && is_finite(x[1]) && is_finite(x[2])))
      error = make_error(SearchError::position_not_finite, atom);
    else if (search.grids[s].framed) {
      known = wrap(search.grids[s].frame, x, y, w);
      if (!known) error = make_error(SearchError::shift_overflow, atom);
    }
  }
  for (int k = 0; k < 3; ++k) {
    low[k] = known ? ordered_bits(y[k]) : ~uint64{0};
    high[k] = known ? ordered_bits(y[k]) : 0;
  }
  const int32_t common = __shfl_sync(all_lanes, s, 0);
  const bool alone = !__all_sync(all_lanes, s == common || s < 0);
  if (!alone)
    for (int step = 16; step; step /= 2) {
      error = min(error, __shfl_xor_sync(all_lanes, error, step));
      for (int k = 0; k < 3; ++k) {
        low[k] = min(low[k], __shfl_xor_sync(all_lanes, low[k], step));
        high[k] = max(high[k], __shfl_xor_sync(all_lanes, high[k], step));
      }
    }
  if (s < 0 || !(alone || threadIdx.x % 32 == 0)) return;
  SystemGrid& grid = search.grids[s];
  // Most add nothing, and a look is cheaper than an atomic.
  for (int k = 0; k < 3; ++k) {
    if (low[k] < __ldcg(&grid.lowest[k])) atomicMin(&grid.lowest[k], low[k]);
    if (high[k] > __ldcg(&grid.highest[k])) atomicMax(&grid.highest[k], high[k]);
  }
  if (error != no_error) atomicMin(&grid.error, error);
}

// System s's atom in wrapped coordinates, for one without errors.
template <typename T>
__device__ float4 place_atom(const Search<T>& search, int32_t s, int32_t atom, int32_t* bin) {
  const SystemGrid& grid = search.grids[s];
  search.system[atom] = s;
  double y[3];
  int32_t w[3], at[3];
  wrap(grid.frame, search.positions + int64_t{3} * atom, y, w);
  for (int k = 0; k < 3; ++k) {
    search.wraps[int64_t{3} * atom + k] = w[k];
    y[k] -= grid.low[k];
    // Rounding can put an atom beside the outermost bin.
    const double inside =
        fmin(fmax(floor(y[k] * grid.bins_per_length[k]), 0.0), grid.bins[k] - 1.0);
    at[k] = static_cast<int32_t>(inside);
  }
  *bin = grid.first_bin + (at[0] * grid.bins[1] + at[1]) * grid.bins[2] + at[2];
  return make_float4(static_cast<float>(y[0]), static_cast<float>(y[1]), static_cast<float>(y[2]),
                     __int_as_float(atom));
}

// The same for a system with errors, whose atoms get no rows.
template <typename T>
__device__ float4 unplaced(const Search<T>& search, int32_t s, int32_t atom) {
  search.system[atom] = s;
  return make_float4(0.0f, 0.0f, 0.0f, __int_as_float(atom));
}

__device__ inline int32_t atom_at(float4 place) { return __float_as_int(place.w); }

template <typename T>
__device__ int32_t find_system(const Search<T>& search, int32_t atom) {
  int32_t low = 0, high = search.systems;  // the system is in [low, high)
  while (high - low > 1) {
    const int32_t middle = low + (high - low) / 2;
    if (search.system_ptr[middle] <= atom)
      low = middle;
    else
      high = middle;
  }
  return low;
}

constexpr int grid_threads = 128;

// Small systems: one bin each, in which the atoms stay in order. A block prepares a system.
template <typename T>
__global__ void __launch_bounds__(grid_threads)
    prepare_systems(const __grid_constant__ Search<T> search) {
  const int64_t thread = int64_t{blockIdx.x} * grid_threads + threadIdx.x;
  for (int64_t k = thread; k < search.row_tile_count; k += int64_t{gridDim.x} * grid_threads)
    search.row_tiles[k] = 0;
  for (int32_t s = blockIdx.x; s < search.systems; s += gridDim.x) {
    const int32_t first = search.first_atom(s), last = search.end_atom(s);
    if (threadIdx.x == 0) start_system(search, s);
    __syncthreads();
    for (int32_t base = first; base < last; base += grid_threads) {
      const int32_t atom = base + threadIdx.x;
      bound_atom(search, atom < last ? s : -1, atom);
    }
    __syncthreads();
    if (threadIdx.x == 0) finish_system(search, s, false);
    __syncthreads();
    const bool good = __ldcg(&search.grids[s].error) == no_error;
    for (int32_t atom = first + threadIdx.x; atom < last; atom += grid_threads) {
      int32_t bin;
      search.sorted[atom] = good ? place_atom(search, s, atom, &bin) : unplaced(search, s, atom);
    }
  }
}

// Large systems, four kernels and a scan: this clears all counts and starts the systems,
template <typename T>
__global__ void __launch_bounds__(grid_threads)
    start_search(const __grid_constant__ Search<T> search) {
  const int64_t thread = int64_t{blockIdx.x} * grid_threads + threadIdx.x;
  const int64_t threads = int64_t{gridDim.x} * grid_threads;
  for (int64_t k = thread; k <= search.bin_count; k += threads) search.bin_start[k] = 0;
  for (int64_t k = thread; k < search.bin_tile_count; k += threads) search.bin_tiles[k] = 0;
  for (int64_t k = thread; k < search.row_tile_count; k += threads) search.row_tiles[k] = 0;
  for (int64_t s = thread; s < search.systems; s += threads)
    start_system(search, static_cast<int32_t>(s));
  if (thread == 0) *search.finished = 0;
}

// this finds how far the atoms of each system reach (the last block to finish then sets the bins),
template <typename T>
__global__ void __launch_bounds__(grid_threads)
    bound_systems(const __grid_constant__ Search<T> search) {
  const int32_t atom = blockIdx.x * grid_threads + threadIdx.x;
  const bool exists = atom < search.atoms;
  bound_atom(search, exists ? find_system(search, atom) : -1, atom);

  bool& last = block_shared<bool>();
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(search.finished, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  for (int32_t s = threadIdx.x; s < search.systems; s += grid_threads)
    finish_system(search, s, true);
}

// this counts the atoms of each bin,
template <typename T>
__global__ void __launch_bounds__(grid_threads)
    count_bins(const __grid_constant__ Search<T> search) {
  const int32_t atom = blockIdx.x * grid_threads + threadIdx.x;
  if (atom >= search.atoms) return;
  const int32_t s = find_system(search, atom);
  int32_t bin = 2 * search.first_atom(s) + s;
  search.wrapped[atom] = search.grids[s].error == no_error ? place_atom(search, s, atom, &bin)
                                                           : unplaced(search, s, atom);
  search.bin[atom] = bin;
  search.rank[atom] = atomicAdd(&search.bin_start[bin], 1);
  atomicAdd(&search.bin_tiles[bin / scan_tile], uint64{1});
}

// and after scan_bins this puts them there.
template <typename T>
__global__ void __launch_bounds__(grid_threads)
    fill_bins(const __grid_constant__ Search<T> search) {
  const int32_t atom = blockIdx.x * grid_threads + threadIdx.x;
  if (atom >= search.atoms) return;
  search.sorted[search.bin_start[search.bin[atom]] + search.rank[atom]] = search.wrapped[atom];
}

}  // namespace molkern
