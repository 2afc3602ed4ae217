// Launches of the CUDA neighbor search: five for small systems, nine with bins.
#include <algorithm>
#include <stdexcept>

#include "neighbors/neighbors.h"
#include "neighbors/rows_cuda.cuh"

namespace molkern {
namespace {

// Hands out consecutive parts of the workspace; from null it only measures.
class Carver {
 public:
  explicit Carver(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <typename T>
  T* take(int64_t count) {
    const int64_t begin = bytes_;
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return memory_ ? reinterpret_cast<T*>(memory_ + begin) : nullptr;
  }

  int64_t bytes() const { return bytes_; }

 private:
  char* memory_;
  int64_t bytes_ = 0;
};

// Direct search looks at every pair of a system but takes four launches less. The bounds are
// estimates: what a launch costs, about 4 us, against some 10^11 pairs a second.
template <typename T>
bool uses_bins(const NeighborQuery<T>& query) {
  if (query.algorithm != SearchAlgorithm::automatic)
    return query.algorithm == SearchAlgorithm::cell_list;
  const int64_t average = query.systems ? query.atoms / query.systems : 0;
  return average > 128 && query.atoms * average > int64_t{1} << 20;
}

template <typename T>
Search<T> carve(const NeighborQuery<T>& query, Carver* carver) {
  if (query.atoms > int64_t{1} << 29 || query.systems > int64_t{1} << 29)
    throw std::runtime_error("molkern: the CUDA neighbor search takes at most 2^29 atoms, got " +
                             std::to_string(std::max(query.atoms, query.systems)));
  Search<T> search{};
  search.positions = query.positions;
  search.cell = query.cell;
  search.pbc = query.pbc;
  search.system_ptr = query.system_ptr;
  search.atoms = query.systems ? static_cast<int32_t>(query.atoms) : 0;
  search.systems = static_cast<int32_t>(query.systems);
  search.cutoff = query.cutoff;
  search.grids = carver->take<SystemGrid>(query.systems);
  search.system = carver->take<int32_t>(query.atoms);
  search.wraps = carver->take<int32_t>(3 * query.atoms);
  search.sorted = carver->take<float4>(query.atoms);
  search.row_tile_count = scan_tiles(query.atoms);
  search.row_tiles = carver->take<uint64>(search.row_tile_count);
  if (!uses_bins(query)) {
    search.bin_start = const_cast<int32_t*>(query.system_ptr);  // only read
    return search;
  }
  search.wrapped = carver->take<float4>(query.atoms);
  search.bin = carver->take<int32_t>(query.atoms);
  search.rank = carver->take<int32_t>(query.atoms);
  search.bin_count = 2 * query.atoms + query.systems;
  search.bin_start = carver->take<int32_t>(search.bin_count + 1);
  search.bin_tile_count = scan_tiles(search.bin_count);
  search.bin_tiles = carver->take<uint64>(search.bin_tile_count);
  search.finished = carver->take<unsigned>(1);
  return search;
}

template <typename T>
void sort_into_bins(const Search<T>& search, Stream stream) {
  const dim3 threads(grid_threads), atoms(blocks_for(search.atoms, grid_threads));
  launch("start_search", start_search<T>, atoms, threads, 0, stream, search);
  launch("bound_systems", bound_systems<T>, atoms, threads, 0, stream, search);
  launch("count_bins", count_bins<T>, atoms, threads, 0, stream, search);
  launch("scan_bins", scan_bins, dim3(static_cast<unsigned>(search.bin_tile_count)),
         dim3(scan_threads), 0, stream, search.bin_start, search.bin_count,
         static_cast<const uint64*>(search.bin_tiles));
  launch("fill_bins", fill_bins<T>, atoms, threads, 0, stream, search);
}

// A whole warp for a row while there are too few rows to fill the device with less.
constexpr int64_t few_rows = 8192;

}  // namespace

template <typename T>
int64_t neighbor_workspace_bytes(const NeighborQuery<T>& query) {
  Carver carver(nullptr);
  carve(query, &carver);
  return carver.bytes();
}

template <typename T>
void count_neighbors_cuda(const NeighborQuery<T>& query, void* workspace, int32_t* row_ptr,
                          SearchStatus* status, Stream stream) {
  Carver carver(workspace);
  const Search<T> search = carve(query, &carver);
  if (uses_bins(query))
    sort_into_bins(search, stream);
  else
    launch("prepare_systems", prepare_systems<T>, dim3(blocks_for(query.systems, 1)),
           dim3(grid_threads), 0, stream, search);
  const int lanes = query.atoms < few_rows ? 32 : 8;
  launch("count_rows", lanes == 32 ? count_rows<32, T> : count_rows<8, T>,
         dim3(blocks_for(query.atoms, row_threads / lanes)), dim3(row_threads), 0, stream, search,
         row_ptr);
  launch("scan_rows", scan_rows<T>, dim3(static_cast<unsigned>(search.row_tile_count)),
         dim3(scan_threads), 0, stream, search, row_ptr, status);
}

template <typename T>
void write_neighbors_cuda(const NeighborQuery<T>& query, void* workspace, const int32_t* row_ptr,
                          const SearchStatus* status, const NeighborOutput& output, Stream stream) {
  if (output.capacity == 0) return;
  Carver carver(workspace);
  const Search<T> search = carve(query, &carver);
  // Room for rows of twice the expected length; longer ones are sorted in global memory.
  const int64_t expected = query.atoms ? 2 * output.capacity / query.atoms : 0;
  const int lanes = query.atoms < few_rows || expected > 256 ? 32 : 8;
  const int rows = row_threads / lanes;
  const int64_t room = 48 * 1024 - sizeof(RowShared<8>);  // of shared memory, in bytes
  const int64_t keys = std::clamp<int64_t>(expected, 64, room / (8 * rows));
  launch("write_rows", lanes == 32 ? write_rows<32, T> : write_rows<8, T>,
         dim3(blocks_for(query.atoms, rows)), dim3(row_threads), 8 * rows * keys, stream, search,
         row_ptr, status, output, static_cast<int32_t>(keys));
  launch("finish_edges", finish_edges, dim3(blocks_for(output.capacity, row_threads)),
         dim3(row_threads), 0, stream, row_ptr, status, output);
}

#define MOLKERN_INSTANTIATE(T)                                                                   \
  template int64_t neighbor_workspace_bytes<T>(const NeighborQuery<T>&);                         \
  template void count_neighbors_cuda<T>(const NeighborQuery<T>&, void*, int32_t*, SearchStatus*, \
                                        Stream);                                                 \
  template void write_neighbors_cuda<T>(const NeighborQuery<T>&, void*, const int32_t*,          \
                                        const SearchStatus*, const NeighborOutput&, Stream);
MOLKERN_INSTANTIATE(float)
MOLKERN_INSTANTIATE(double)

}  // namespace molkern
