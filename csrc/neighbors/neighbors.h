// Neighbor search: all pairs of atoms and periodic images within a cutoff, as a sorted CSR list.
//
// Edge j -> i (i receives) with image shift s exists where d < cutoff, except an atom with itself
// in the same image; its vector is (x[j] - x[i]) + s . C of the atoms' system. Edges are sorted by
// (receiver, sender, shift[0], shift[1], shift[2]); reverse[e] is the place of i -> j with -s.
// The list is always symmetric, and the same to the bit for every algorithm, thread count,
// instruction set and device, because membership is decided by one formula (`pair_in_range`,
// pair.h), evaluated in float64 without contraction, wherever a faster float32 estimate is within
// its error bound of the cutoff.
#pragma once

#include <cstdint>
#include <memory>

#include "common/isa.h"
#include "common/stream.h"

namespace molkern {

constexpr int64_t most_edges = 0x7fffffff;  // that int32 can count

enum class SearchAlgorithm : int { automatic = 0, direct = 1, cell_list = 2 };

template <typename T>
struct NeighborQuery {
  const T* positions;         // [atoms, 3]
  const T* cell;              // [systems, 3, 3] rows are lattice vectors; null: not periodic
  const uint8_t* pbc;         // [systems, 3]; null: not periodic
  const int32_t* system_ptr;  // [systems + 1] first atom of each system
  int64_t atoms;
  int64_t systems;
  double cutoff;
  SearchAlgorithm algorithm;
};

// Each array has room for `capacity` edges; entries from the true count on are padding:
// senders and receivers -1, shifts 0, reverse -1.
struct NeighborOutput {
  int32_t* senders;    // [capacity]
  int32_t* receivers;  // [capacity]
  int32_t* shifts;     // [capacity, 3], or null where nothing is periodic
  int32_t* reverse;    // [capacity]
  int64_t capacity;
};

// What a search can find wrong with its input. `index` is the atom or system concerned.
enum class SearchError : int32_t {
  none = 0,
  position_not_finite = 1,  // index: atom
  cell_not_finite = 2,      // index: system
  cell_singular = 3,        // index: system; only where a periodic axis needs it
  too_many_edges = 4,       // more than 2^31 - 1
  // index: atom; farther than 2^20 cells from the cell, or than 1e15 from the origin; or the cutoff
  // reaches more images of its system than 31 bits number
  shift_overflow = 5,
  batch_not_sorted = 6,  // set by the operator, where it cannot wait for the device
};

struct SearchStatus {
  int64_t edges;      // true number of edges, also where it exceeds the capacity
  SearchError error;  // the first in the order above; then edges is meaningless
  int32_t index;
};

// CPU: search, then write. The found object keeps the pairs between the two calls.
class FoundNeighbors {
 public:
  virtual ~FoundNeighbors() = default;
  virtual void write(const NeighborOutput& output) = 0;
};

template <Isa isa, typename T>
std::unique_ptr<FoundNeighbors> search_neighbors_cpu(const NeighborQuery<T>& query,
                                                     int32_t* row_ptr,  // [atoms + 1], overwritten
                                                     SearchStatus* status, int threads);

// CUDA: all arrays, query's included, are on the device; `status` is too, so that nothing waits.
// count fills row_ptr and status; write fills the output from the same workspace and writes
// no edge where status says error or edges > capacity.
template <typename T>
int64_t neighbor_workspace_bytes(const NeighborQuery<T>& query);

template <typename T>
void count_neighbors_cuda(const NeighborQuery<T>& query, void* workspace, int32_t* row_ptr,
                          SearchStatus* status, Stream stream);

template <typename T>
void write_neighbors_cuda(const NeighborQuery<T>& query, void* workspace, const int32_t* row_ptr,
                          const SearchStatus* status, const NeighborOutput& output, Stream stream);

}  // namespace molkern
