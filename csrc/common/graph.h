// Plain-old-data views of a molecular graph. Nothing here owns memory or knows torch.
#pragma once

#include <cstdint>

namespace molkern {

// One direction of a graph in compressed sparse rows: row r holds entries
// k = row_ptr[r] .. row_ptr[r + 1], each naming an atom and a position in the edge tensors.
// Seen from the receivers, `neighbors` are senders and `edges` is null (edge tensors lie in row
// order). Seen from the senders, `neighbors` are receivers and `edges` says where each entry lies;
// for a symmetric neighbor list that is row_ptr, senders and reverse once more.
struct Adjacency {
  const int32_t* row_ptr;    // [rows + 1]
  const int32_t* neighbors;  // [E]
  const int32_t* edges;      // [E] or null: entry k is edge k
  int64_t rows;

#ifdef __CUDACC__
  __host__ __device__
#endif
      int64_t edge(int64_t entry) const {
    return edges ? edges[entry] : entry;
  }
};

}  // namespace molkern
