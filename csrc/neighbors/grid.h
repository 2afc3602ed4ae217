// Preparation of a search: every system's frame, its atoms wrapped and sorted into bins, and groups
// of atoms that lie close together and are searched together.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "common/parallel.h"
#include "neighbors/buffer.h"
#include "neighbors/neighbors.h"
#include "neighbors/pair.h"

namespace molkern::MOLKERN_ISA {

constexpr int64_t direct_limit = 256;  // atoms up to which all pairs are tried
constexpr int64_t direct_group = 32;   // receivers searched together, at most
constexpr int64_t cell_list_group = 16;
constexpr int64_t block_size = 1024;  // atoms per unit of parallel work
constexpr int64_t padding = 16;       // floats that may be read past the last

struct System {
  Frame frame;
  ImageCode code;
  int64_t first, count;  // atoms
  double low[3];         // of the wrapped coordinates, which are then taken relative to it
  double extent[3];      // their spread
  double slack;          // bounds the error of any coordinate difference taken in float32
  double bin_size[3];
  float bins_per_length[3];
  int32_t bins[3];
  int64_t first_bin;
  bool wrapped;         // some atom lies outside the brick
  bool several_images;  // a pair may be in range in more than one image

  int64_t columns() const { return int64_t{bins[0]} * bins[1]; }
  int32_t bin(int axis, float coordinate) const {
    const float place = std::max(coordinate, 0.0f) * bins_per_length[axis];
    return place < static_cast<float>(bins[axis]) ? static_cast<int32_t>(place) : bins[axis] - 1;
  }
};

// Consecutive atoms of one column of bins, in sorted order.
struct Group {
  int32_t system;
  int32_t column;
  int32_t first;  // in the system's sorted order
  int32_t count;
};

// What one block of atoms contributes to its system.
struct Block {
  int64_t system, first, last;
  double low[3], high[3];
  double far;  // largest |x|
  double wraps[3];
  SearchError error;
  int64_t index;
};

struct Grid {
  std::vector<System> systems;
  std::vector<Block> blocks;
  std::vector<Group> groups;
  int32_t (*wraps)[4];  // [atoms] whole cells by which an atom was moved; the fourth is zero
  float* x[3];          // [atoms + padding] sorted coordinates
  int32_t* order;       // [atoms + padding] sorted -> index within the system
  int32_t* bin_start;   // first_bin + bin -> place in the system's sorted order
  int word_bits;        // needed for (index within the system, image code), in any system
  SearchError error = SearchError::none;
  int64_t error_index = 0;

  void fail(SearchError kind, int64_t index) {
    if (error != SearchError::none && (error < kind || (error == kind && error_index <= index)))
      return;
    error = kind;
    error_index = index;
  }
};

struct GridMemory {
  Buffer coordinates, wraps, bins, x[3], order, bin_start;

  size_t bytes() const {
    return coordinates.bytes() + wraps.bytes() + bins.bytes() + 3 * x[0].bytes() + order.bytes() +
           bin_start.bytes();
  }
};

template <typename T>
class GridBuilder {
 public:
  GridBuilder(const NeighborQuery<T>& query, GridMemory& memory, Grid& grid, int threads)
      : query_(query), memory_(memory), grid_(grid), threads_(threads) {}

  // False, with grid.error set, where the input is wrong.
  bool build() {
    make_systems();
    measure_blocks();
    if (grid_.error != SearchError::none) return false;
    double edges = 0.0;
    for (System& system : grid_.systems) {
      plan(system);
      edges += fewest_edges(system.frame, query_.cutoff - system.slack, system.extent,
                            static_cast<double>(system.count));
    }
    if (grid_.error == SearchError::none && edges > static_cast<double>(most_edges))
      grid_.fail(SearchError::too_many_edges, 0);
    if (grid_.error != SearchError::none) return false;
    place_bins();
    sort_atoms();
    if (edges_within_bins() > static_cast<double>(most_edges)) {
      grid_.fail(SearchError::too_many_edges, 0);
      return false;
    }
    make_groups();
    return true;
  }

 private:
  const T* cell(int64_t system) const { return query_.cell ? query_.cell + 9 * system : nullptr; }

  void make_systems() {
    grid_.systems.resize(query_.systems);
    grid_.blocks.clear();
    for (int64_t s = 0; s < query_.systems; ++s) {
      System& system = grid_.systems[s];
      system.first = query_.system_ptr[s];
      system.count = query_.system_ptr[s + 1] - system.first;
      const FrameError error =
          make_frame(cell(s), query_.pbc ? query_.pbc + 3 * s : nullptr, &system.frame);
      if (error == FrameError::not_finite) grid_.fail(SearchError::cell_not_finite, s);
      if (error == FrameError::singular) grid_.fail(SearchError::cell_singular, s);
      const int64_t end = system.first + system.count;
      for (int64_t first = system.first; first < end; first += block_size) {
        Block& block = grid_.blocks.emplace_back();
        block.system = s;
        block.first = first;
        block.last = std::min(first + block_size, end);
      }
    }
  }

  void measure_blocks() {
    y_ = memory_.coordinates.get<double>(3 * query_.atoms);
    grid_.wraps = memory_.wraps.get<int32_t[4]>(query_.atoms);
    const bool frames_are_good = grid_.error == SearchError::none;
    const int64_t blocks = static_cast<int64_t>(grid_.blocks.size());
    parallel_for(threads_, blocks, [&](int64_t b) { measure(grid_.blocks[b], frames_are_good); });
    for (const Block& block : grid_.blocks)
      if (block.error != SearchError::none) grid_.fail(block.error, block.index);
    if (grid_.error == SearchError::none) merge_blocks();
  }

  void measure(Block& block, bool frames_are_good) const {
    const Frame& frame = grid_.systems[block.system].frame;
    std::fill_n(block.low, 3, std::numeric_limits<double>::infinity());
    std::fill_n(block.high, 3, -std::numeric_limits<double>::infinity());
    std::fill_n(block.wraps, 3, 0.0);
    block.far = 0.0;
    block.error = SearchError::none;
    for (int64_t i = block.first; i < block.last; ++i) {
      const T* x = query_.positions + 3 * i;
      if (!std::isfinite(x[0]) || !std::isfinite(x[1]) || !std::isfinite(x[2])) {
        block.error = SearchError::position_not_finite;
        block.index = i;
        return;
      }
      if (!frames_are_good || block.error != SearchError::none) continue;
      double* y = y_ + 3 * i;
      int32_t* w = grid_.wraps[i];
      if (!wrap(frame, x, y, w)) {
        block.error = SearchError::shift_overflow;
        block.index = i;
        continue;
      }
      w[3] = 0;
      for (int k = 0; k < 3; ++k) {
        block.low[k] = std::min(block.low[k], y[k]);
        block.high[k] = std::max(block.high[k], y[k]);
        block.far = std::max(block.far, std::fabs(static_cast<double>(x[k])));
        block.wraps[k] = std::max(block.wraps[k], std::fabs(static_cast<double>(w[k])));
      }
    }
  }

  // Gives every system its origin, spread and error bound. A coordinate difference has errors from
  // rounding to float32 (of coordinates, image offsets and their sums, each at most about spread +
  // cutoff: the factor allows for 32 such roundings) and from wrapping in float64.
  void merge_blocks() {
    const Block* block = grid_.blocks.data();
    const Block* const end = block + grid_.blocks.size();
    for (int64_t s = 0; s < query_.systems; ++s) {
      System& system = grid_.systems[s];
      std::fill_n(system.extent, 3, 0.0);
      system.slack = 0.0;
      if (!system.count) continue;
      Block all = *block++;
      for (; block != end && block->system == s; ++block) {
        for (int k = 0; k < 3; ++k) {
          all.low[k] = std::min(all.low[k], block->low[k]);
          all.high[k] = std::max(all.high[k], block->high[k]);
          all.wraps[k] = std::max(all.wraps[k], block->wraps[k]);
        }
        all.far = std::max(all.far, block->far);
      }
      double moved = all.far;
      for (int k = 0; k < 3; ++k) {
        system.low[k] = all.low[k];
        system.extent[k] = all.high[k] - all.low[k];
        const double* vector = system.frame.lattice[k];
        moved += all.wraps[k] * std::sqrt(dot3(vector, vector));
      }
      system.wrapped = all.wraps[0] + all.wraps[1] + all.wraps[2] > 0.0;
      const double rounding = std::ldexp(moved, -46);
      if (is_sparse(system)) shorten(system, 2.0 * (query_.cutoff + rounding));
      const double spread = *std::max_element(system.extent, system.extent + 3);
      system.slack = std::ldexp(spread + query_.cutoff, -19) + rounding;
    }
  }

  // Whether few atoms lie in much room: there are stretches without any.
  bool is_sparse(const System& system) const {
    double cubes = 1.0;
    for (double extent : system.extent) cubes *= std::max(extent / query_.cutoff, 1.0);
    return cubes > 4.0 * static_cast<double>(system.count) + 64.0;
  }

  // Shortens stretches that hold no atom to the length `kept`, more than the cutoff, along every
  // axis: no pair across one is in range, before and after, and every other vector stays what it
  // is. A far atom would else spoil the bins and the float32 coordinates of all others.
  void shorten(System& system, double kept) {
    Frame& frame = system.frame;
    for (int k = 0; k < 3; ++k) {
      bool straight = true;  // no other period moves atoms along this axis
      for (int l = 0; l < k; ++l) straight &= std::fabs(frame.lattice[l][k]) * 1e6 < kept;
      double before = system.extent[k];
      while (straight && shorten_axis(system, k, kept)) {
        if (!(system.extent[k] < 0.5 * before)) break;
        before = system.extent[k];
      }
    }
    if (frame.periodic[0] || frame.periodic[1] || frame.periodic[2]) set_spacing(&frame);
  }

  // One pass, over intervals at least as long as the cutoff; false if it found nothing to do.
  bool shorten_axis(System& system, int axis, double kept) {
    const double extent = system.extent[axis], low = system.low[axis];
    const double most = 2.0 * static_cast<double>(system.count) + 8.0;
    const int64_t intervals = static_cast<int64_t>(std::min(extent / kept, most));
    if (intervals < 4) return false;
    const double per_length = static_cast<double>(intervals) / extent;
    moves_.assign(intervals, -1.0);
    double* const y = y_ + 3 * system.first + axis;
    const auto interval = [=](int64_t i) {
      const auto place = static_cast<int64_t>((y[3 * i] - low) * per_length);
      return std::clamp<int64_t>(place, 0, intervals - 1);
    };
    for (int64_t i = 0; i < system.count; ++i) moves_[interval(i)] = 0.0;
    double moved = 0.0;
    int64_t last = 0;  // that holds atoms
    for (int64_t m = 0; m < intervals; ++m) {
      if (moves_[m] < 0.0) continue;
      const double empty = static_cast<double>(m - last - 1) / per_length;
      moved += std::max(empty - kept, 0.0);
      moves_[m] = moved;
      last = m;
    }
    if (moved == 0.0) return false;
    double high = low;
    for (int64_t i = 0; i < system.count; ++i) {
      y[3 * i] -= moves_[interval(i)];
      high = std::max(high, y[3 * i]);
    }
    system.extent[axis] = high - low;
    if (system.frame.periodic[axis]) {
      double& length = system.frame.lattice[axis][axis];
      length -= moved;
      system.frame.inverse[axis] = 1.0 / length;
    }
    return true;
  }

  // Image codes and the size of bins, so that a cube of column width holds about one group.
  void plan(System& system) {
    std::fill_n(system.bins, 3, 1);
    std::fill_n(system.bins_per_length, 3, 0.0f);
    system.code = {};
    if (!system.count) return;
    if (!image_code(system.frame, query_.cutoff + 4.0 * system.slack, system.extent, &system.code))
      return grid_.fail(SearchError::shift_overflow, system.first);
    // Two images of an atom within the cutoff of another are less than two cutoffs apart.
    system.several_images = false;
    for (int k = 0; k < 3; ++k)
      if (system.frame.periodic[k] &&
          system.frame.spacing[k] < 2.0 * (query_.cutoff + system.slack))
        system.several_images = true;
    const bool direct =
        query_.algorithm == SearchAlgorithm::direct ||
        (query_.algorithm == SearchAlgorithm::automatic && system.count <= direct_limit);
    if (!direct) choose_bins(system);
    for (int k = 0; k < 3; ++k) {
      system.bin_size[k] = system.extent[k] / system.bins[k];
      if (system.bins[k] > 1)
        system.bins_per_length[k] = static_cast<float>(system.bins[k] / system.extent[k]);
    }
  }

  void choose_bins(System& system) const {
    double volume = 1.0;
    for (double extent : system.extent) volume *= std::max(extent, 0.5 * query_.cutoff);
    double side = std::cbrt(volume * cell_list_group / static_cast<double>(system.count));
    const double most = 4.0 * static_cast<double>(system.count) + 64.0;
    for (;; side *= 1.25) {
      double total = 1.0;
      for (int k = 0; k < 3; ++k) {
        // Bins are finer along the columns: they only bound the runs there.
        const double wanted = std::floor(system.extent[k] / (k == 2 ? 0.25 * side : side));
        total *= std::max(wanted, 1.0);
        system.bins[k] = static_cast<int32_t>(std::clamp(wanted, 1.0, most));
      }
      if (total <= most) return;
    }
  }

  void place_bins() {
    int64_t bins = 0;
    grid_.word_bits = 1;
    for (System& system : grid_.systems) {
      system.first_bin = bins;
      bins += system.columns() * system.bins[2] + 2;
      int bits = system.code.bits;
      for (int64_t last = system.count - 1; last > 0; last >>= 1) ++bits;
      grid_.word_bits = std::max(grid_.word_bits, bits);
    }
    grid_.bin_start = memory_.bin_start.get<int32_t>(bins);
  }

  float coordinate(const System& system, int64_t atom, int k) const {
    return static_cast<float>(y_[3 * (system.first + atom) + k] - system.low[k]);
  }

  void sort_atoms() {
    bin_ = memory_.bins.get<int32_t>(query_.atoms);
    grid_.order = memory_.order.get<int32_t>(query_.atoms + padding);
    std::fill_n(grid_.order + query_.atoms, padding, 0);
    for (int k = 0; k < 3; ++k) {
      grid_.x[k] = memory_.x[k].get<float>(query_.atoms + padding);
      std::fill_n(grid_.x[k] + query_.atoms, padding, 0.0f);
    }
    const int64_t blocks = static_cast<int64_t>(grid_.blocks.size());
    parallel_for(threads_, blocks, [&](int64_t b) { find_bins(grid_.blocks[b]); });
    parallel_for(threads_, query_.systems, [&](int64_t s) { sort_system(grid_.systems[s]); });
    parallel_for(threads_, blocks, [&](int64_t b) { gather_coordinates(grid_.blocks[b]); });
  }

  void find_bins(const Block& block) const {
    const System& system = grid_.systems[block.system];
    if (system.columns() * system.bins[2] == 1) return;
    for (int64_t i = block.first; i < block.last; ++i) {
      int32_t place = 0;
      for (int k = 0; k < 3; ++k)
        place = place * system.bins[k] + system.bin(k, coordinate(system, i - system.first, k));
      bin_[i] = place;
    }
  }

  // Counting sort; atoms of a bin stay in their order.
  void sort_system(const System& system) const {
    int32_t* start = grid_.bin_start + system.first_bin;
    int32_t* order = grid_.order + system.first;
    const int64_t bins = system.columns() * system.bins[2];
    if (bins == 1) {
      start[0] = 0;
      start[1] = static_cast<int32_t>(system.count);
      for (int32_t k = 0; k < system.count; ++k) order[k] = k;
      return;
    }
    const int32_t* bin = bin_ + system.first;
    std::fill_n(start, bins + 2, 0);
    for (int64_t i = 0; i < system.count; ++i) ++start[bin[i] + 2];
    for (int64_t b = 2; b < bins + 2; ++b) start[b] += start[b - 1];
    for (int64_t i = 0; i < system.count; ++i) order[start[bin[i] + 1]++] = static_cast<int32_t>(i);
  }

  void gather_coordinates(const Block& block) const {
    const System& system = grid_.systems[block.system];
    for (int64_t k = block.first; k < block.last; ++k)
      for (int axis = 0; axis < 3; ++axis)
        grid_.x[axis][k] = coordinate(system, grid_.order[k], axis);
  }

  // Another lower bound of the edges, where there may be too many: atoms that lie in one bin are
  // neighbors if its diagonal is below the cutoff.
  double edges_within_bins() const {
    double edges = 0.0;
    for (const System& system : grid_.systems) {
      const double count = static_cast<double>(system.count);
      const double diagonal = std::sqrt(dot3(system.bin_size, system.bin_size));
      if (count * count < most_edges || diagonal > query_.cutoff - 2.0 * system.slack) continue;
      const int32_t* start = grid_.bin_start + system.first_bin;
      const int64_t bins = system.columns() * system.bins[2];
      for (int64_t b = 0; b < bins; ++b) {
        const double atoms = start[b + 1] - start[b];
        edges += atoms * (atoms - 1.0);
      }
    }
    return edges;
  }

  // Every column is cut into pieces of about equal counts.
  void make_groups() {
    grid_.groups.clear();
    for (int64_t s = 0; s < query_.systems; ++s) {
      const System& system = grid_.systems[s];
      const int32_t* start = grid_.bin_start + system.first_bin;
      const int64_t columns = system.columns();
      const int64_t most = columns > 1 ? cell_list_group : direct_group;
      for (int64_t column = 0; column < columns; ++column) {
        const int64_t first = start[column * system.bins[2]];
        const int64_t count = start[(column + 1) * system.bins[2]] - first;
        const int64_t pieces = (count + most - 1) / most;
        for (int64_t p = 0; p < pieces; ++p) {
          const int64_t from = count * p / pieces, to = count * (p + 1) / pieces;
          grid_.groups.push_back({static_cast<int32_t>(s), static_cast<int32_t>(column),
                                  static_cast<int32_t>(first + from),
                                  static_cast<int32_t>(to - from)});
        }
      }
    }
  }

  const NeighborQuery<T>& query_;
  GridMemory& memory_;
  Grid& grid_;
  const int threads_;
  std::vector<double> moves_;  // of the atoms in an interval
  double* y_ = nullptr;        // [atoms, 3] wrapped coordinates in the frame's axes
  int32_t* bin_ = nullptr;     // [atoms]
};

}  // namespace molkern::MOLKERN_ISA
