#include <cmath>

#include "common/host_device.h"
#include "common/launch.h"
#include "common/warp.h"
#include "geometry/geometry.h"

namespace molkern {
namespace {

constexpr int threads = 256;
constexpr int team = 16;          // lanes that share a row
constexpr int chunk_atoms = 128;  // atoms whose cell gradients are added before the systems' are
constexpr int system_threads = 128;

template <typename T>
__device__ __forceinline__ T length(T x, T y, T z) {
  const T square = x * x + y * y + z * z;
  return square < smallest_square<T> ? T(0) : sqrt(square);
}

// Calls write(e, v) for every edge, v being its vector: a team for every receiver, a lane for every
// edge.
template <typename T, typename Write>
__device__ __forceinline__ void each_vector(const Adjacency& receivers, const Images& images,
                                            const T* positions, const T* cell, Write write) {
  const int64_t i = (int64_t{blockIdx.x} * threads + threadIdx.x) / team;
  if (i >= receivers.rows) return;
  const T xi[3] = {positions[3 * i], positions[3 * i + 1], positions[3 * i + 2]};
  const T* c = cell + 9 * int64_t{images.system && images.shifts ? images.system[i] : 0};
  for (int64_t k = receivers.row_ptr[i] + int64_t{threadIdx.x % team}; k < receivers.row_ptr[i + 1];
       k += team) {
    const int64_t e = receivers.edge(k);
    const T* xj = positions + 3 * int64_t{receivers.neighbors[k]};
    T v[3] = {xj[0] - xi[0], xj[1] - xi[1], xj[2] - xi[2]};
    if (images.shifts) {
      const int32_t* shift = images.shifts + 3 * e;
      const T s0 = T(shift[0]), s1 = T(shift[1]), s2 = T(shift[2]);
      for (int a = 0; a < 3; ++a) v[a] += s0 * c[a] + s1 * c[3 + a] + s2 * c[6 + a];
    }
    write(e, v);
  }
}

// v[e] = (x[j] - x[i]) + s[e] . C
// Must move per edge: 4 bytes of index, 12 of shift, 3 numbers written; positions stay in caches.
template <typename T>
__global__ void __launch_bounds__(threads)
    edge_vectors_kernel(Adjacency receivers, Images images, const T* __restrict__ positions,
                        const T* __restrict__ cell, T* __restrict__ vectors) {
  each_vector(receivers, images, positions, cell, [=](int64_t e, const T(&v)[3]) {
    for (int a = 0; a < 3; ++a) vectors[3 * e + a] = v[a];
  });
}

// The same, but one number is written: d[e] = |v[e]|.
template <typename T>
__global__ void __launch_bounds__(threads)
    edge_distances_kernel(Adjacency receivers, Images images, const T* __restrict__ positions,
                          const T* __restrict__ cell, T* __restrict__ distances) {
  each_vector(receivers, images, positions, cell,
              [=](int64_t e, const T(&v)[3]) { distances[e] = length(v[0], v[1], v[2]); });
}

// Adds sign times the vectors that a lane of the team has in a row.
template <typename T>
__device__ __forceinline__ void add_row(const Adjacency& graph, int64_t row, int lane,
                                        const T* vectors, T sign, T (&sum)[3]) {
#pragma unroll 2
  for (int64_t k = graph.row_ptr[row] + int64_t{lane}; k < graph.row_ptr[row + 1]; k += team) {
    const T* v = vectors + 3 * graph.edge(k);
    for (int a = 0; a < 3; ++a) sum[a] += sign * v[a];
  }
}

// dL/dx[a]: a team for every atom, its lanes take the entries of both rows in turn.
// Must move per edge: 3 numbers (read twice, from memory once where the L2 cache holds a
// neighborhood), 4 bytes of index.
template <typename T>
__global__ void __launch_bounds__(threads)
    edge_vectors_adjoint_positions(Adjacency receivers, Adjacency senders,
                                   const T* __restrict__ grad_vectors,
                                   T* __restrict__ grad_positions) {
  const int64_t atom = (int64_t{blockIdx.x} * threads + threadIdx.x) / team;
  const int lane = threadIdx.x % team;
  T sum[3] = {};
  if (atom < receivers.rows) {
    add_row(senders, atom, lane, grad_vectors, T(1), sum);
    add_row(receivers, atom, lane, grad_vectors, T(-1), sum);
  }
  for (int a = 0; a < 3; ++a) sum[a] = sum_lanes(sum[a], 1, team);
  if (atom >= receivers.rows || lane > 0) return;
  for (int a = 0; a < 3; ++a) grad_positions[3 * atom + a] = sum[a];
}

// The cell gradient goes up in three steps of fixed order: atoms, chunks of atoms, systems. First
// the part of the edges that each atom receives, [atoms, 9].
// Must move per edge: 3 numbers and 12 bytes of shift.
template <typename T>
__global__ void __launch_bounds__(threads)
    edge_vectors_adjoint_cell_atoms(Adjacency receivers, const int32_t* __restrict__ shifts,
                                    const T* __restrict__ grad_vectors, T* __restrict__ atoms) {
  const int64_t atom = (int64_t{blockIdx.x} * threads + threadIdx.x) / team;
  const int lane = threadIdx.x % team;
  T sum[9] = {};
  if (atom < receivers.rows) {
    for (int64_t k = receivers.row_ptr[atom] + int64_t{lane}; k < receivers.row_ptr[atom + 1];
         k += team) {
      const int64_t e = receivers.edge(k);
      for (int a = 0; a < 3; ++a)
        for (int b = 0; b < 3; ++b)
          sum[3 * a + b] += T(shifts[3 * e + a]) * grad_vectors[3 * e + b];
    }
  }
  for (int a = 0; a < 9; ++a) sum[a] = sum_lanes(sum[a], 1, team);
  if (atom >= receivers.rows) return;
#pragma unroll
  for (int a = 0; a < 9; ++a)
    if (lane == a) atoms[9 * atom + a] = sum[a];
}

// Then the sums over chunks of atoms, [chunks, 9]: a warp for every whole chunk.
template <typename T>
__global__ void __launch_bounds__(threads)
    edge_vectors_adjoint_cell_chunks(const T* __restrict__ atoms, int64_t chunks,
                                     T* __restrict__ sums) {
  const int64_t chunk = (int64_t{blockIdx.x} * threads + threadIdx.x) / warp_lanes;
  if (chunk >= chunks) return;
  const int lane = threadIdx.x % warp_lanes;
#pragma unroll 1
  for (int a = 0; a < 9; ++a) {
    double sum = 0;
    for (int64_t i = lane; i < chunk_atoms; i += warp_lanes)
      sum += atoms[9 * (chunk * chunk_atoms + i) + a];
    sum = sum_lanes(sum);
    if (lane == 0) sums[9 * chunk + a] = T(sum);
  }
}

// The first of the atoms, which are sorted by system, that belongs to this system or a later one.
__device__ __forceinline__ int64_t first_atom(const int32_t* system, int64_t atoms,
                                              int64_t wanted) {
  if (!system) return wanted > 0 ? atoms : 0;
  int64_t low = 0, high = atoms;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (system[middle] < wanted)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

struct CellSums {
  double part[system_threads / warp_lanes][9];
};

// Last a block for every system: its whole chunks, and its atoms before and behind them.
template <typename T>
__global__ void __launch_bounds__(system_threads)
    edge_vectors_adjoint_cell_systems(const int32_t* __restrict__ system, int64_t atom_count,
                                      const T* __restrict__ atoms, const T* __restrict__ chunks,
                                      T* __restrict__ grad_cell) {
  CellSums& shared = block_shared<CellSums>();
  const int64_t first = first_atom(system, atom_count, blockIdx.x);
  const int64_t last = first_atom(system, atom_count, int64_t{blockIdx.x} + 1);
  int64_t first_chunk = (first + chunk_atoms - 1) / chunk_atoms, last_chunk = last / chunk_atoms;
  if (first_chunk >= last_chunk) first_chunk = last_chunk = last / chunk_atoms + 1;  // no whole one
  const int64_t head = min(last, first_chunk * chunk_atoms);
  const int64_t tail = max(head, last_chunk * chunk_atoms);
#pragma unroll 1
  for (int a = 0; a < 9; ++a) {
    double sum = 0;
#pragma unroll 2
    for (int64_t i = first + threadIdx.x; i < head; i += system_threads) sum += atoms[9 * i + a];
#pragma unroll 2
    for (int64_t i = first_chunk + threadIdx.x; i < last_chunk; i += system_threads)
      sum += chunks[9 * i + a];
#pragma unroll 2
    for (int64_t i = tail + threadIdx.x; i < last; i += system_threads) sum += atoms[9 * i + a];
    sum = sum_lanes(sum);
    if (threadIdx.x % warp_lanes == 0) shared.part[threadIdx.x / warp_lanes][a] = sum;
  }
  __syncthreads();
  if (threadIdx.x >= 9) return;
  double total = 0;
  for (int k = 0; k < system_threads / warp_lanes; ++k) total += shared.part[k][threadIdx.x];
  grad_cell[9 * int64_t{blockIdx.x} + threadIdx.x] = T(total);
}

template <typename T>
void cell_gradient(const Adjacency& receivers, const Images& images, const T* grad_vectors,
                   T* grad_cell, T* workspace, Stream stream) {
  const int64_t count = receivers.rows, chunk_count = count / chunk_atoms;
  T *atoms = workspace, *chunks = workspace + 9 * count;
  if (count > 0)
    launch("edge_vectors_adjoint_cell_atoms", edge_vectors_adjoint_cell_atoms<T>,
           dim3(blocks_for(count, threads / team)), dim3(threads), 0, stream, receivers,
           images.shifts, grad_vectors, atoms);
  if (chunk_count > 0)
    launch("edge_vectors_adjoint_cell_chunks", edge_vectors_adjoint_cell_chunks<T>,
           dim3(blocks_for(chunk_count, threads / warp_lanes)), dim3(threads), 0, stream, atoms,
           chunk_count, chunks);
  launch("edge_vectors_adjoint_cell_systems", edge_vectors_adjoint_cell_systems<T>,
         dim3(static_cast<unsigned>(images.systems)), dim3(system_threads), 0, stream,
         images.system, count, atoms, chunks, grad_cell);
}

}  // namespace

template <typename T>
void edge_vectors_cuda(const Adjacency& receivers, const Images& images, const T* positions,
                       const T* cell, T* vectors, Stream stream) {
  if (receivers.rows == 0) return;
  const Images used{cell ? images.shifts : nullptr, images.system, images.systems};
  launch("edge_vectors_kernel", edge_vectors_kernel<T>,
         dim3(blocks_for(receivers.rows, threads / team)), dim3(threads), 0, stream, receivers,
         used, positions, cell, vectors);
}

template <typename T>
void edge_distances_cuda(const Adjacency& receivers, const Images& images, const T* positions,
                         const T* cell, T* distances, Stream stream) {
  if (receivers.rows == 0) return;
  const Images used{cell ? images.shifts : nullptr, images.system, images.systems};
  launch("edge_distances_kernel", edge_distances_kernel<T>,
         dim3(blocks_for(receivers.rows, threads / team)), dim3(threads), 0, stream, receivers,
         used, positions, cell, distances);
}

int64_t edge_vectors_adjoint_workspace(int64_t atoms) { return 9 * (atoms + atoms / chunk_atoms); }

template <typename T>
void edge_vectors_adjoint_cuda(const Adjacency& receivers, const Adjacency& senders,
                               const Images& images, const T* grad_vectors, T* grad_positions,
                               T* grad_cell, T* workspace, Stream stream) {
  if (receivers.rows > 0)
    launch("edge_vectors_adjoint_positions", edge_vectors_adjoint_positions<T>,
           dim3(blocks_for(receivers.rows, threads / team)), dim3(threads), 0, stream, receivers,
           senders, grad_vectors, grad_positions);
  if (!grad_cell || images.systems == 0) return;
  if (images.shifts)
    cell_gradient(receivers, images, grad_vectors, grad_cell, workspace, stream);
  else
    clear(grad_cell, 9 * images.systems * sizeof(T), stream);
}

namespace {

// d[e] = |v[e]|. Must move per edge: 3 numbers read, 1 written.
template <typename T>
__global__ void __launch_bounds__(threads)
    edge_norm_kernel(const T* __restrict__ vectors, T* __restrict__ distances, int64_t edges) {
  const int64_t e = int64_t{blockIdx.x} * threads + threadIdx.x;
  if (e >= edges) return;
  const T x = vectors[3 * e], y = vectors[3 * e + 1], z = vectors[3 * e + 2];
  distances[e] = length(x, y, z);
}

// 1 / |v|, and 0 where v counts as zero: every derivative of the norm there is zero.
template <typename T>
__device__ __forceinline__ T inverse_norm(T x, T y, T z) {
  const T square = x * x + y * y + z * z;
  return square < smallest_square<T> ? T(0) : T(1) / sqrt(square);
}

// gv = gd v / d. Must move per edge: 4 numbers read, 3 written.
template <typename T>
__global__ void __launch_bounds__(threads)
    edge_norm_grad_kernel(const T* __restrict__ grad_distances, const T* __restrict__ vectors,
                          T* __restrict__ grad_vectors, int64_t edges) {
  const int64_t e = int64_t{blockIdx.x} * threads + threadIdx.x;
  if (e >= edges) return;
  const T x = vectors[3 * e], y = vectors[3 * e + 1], z = vectors[3 * e + 2];
  const T factor = grad_distances[e] * inverse_norm(x, y, z);
  grad_vectors[3 * e] = factor * x;
  grad_vectors[3 * e + 1] = factor * y;
  grad_vectors[3 * e + 2] = factor * z;
}

// The derivative of <h, gv>. Must move per edge: 7 numbers read, 4 written.
template <typename T>
__global__ void __launch_bounds__(threads)
    edge_norm_hvp_kernel(const T* __restrict__ h, const T* __restrict__ grad_distances,
                         const T* __restrict__ vectors, T* __restrict__ grad_grad_distances,
                         T* __restrict__ grad_vectors, int64_t edges) {
  const int64_t e = int64_t{blockIdx.x} * threads + threadIdx.x;
  if (e >= edges) return;
  const T x = vectors[3 * e], y = vectors[3 * e + 1], z = vectors[3 * e + 2];
  const T hx = h[3 * e], hy = h[3 * e + 1], hz = h[3 * e + 2];
  const T inverse = inverse_norm(x, y, z);
  const T along = (hx * x + hy * y + hz * z) * inverse;
  const T factor = grad_distances[e] * inverse, back = along * inverse;
  grad_grad_distances[e] = along;
  grad_vectors[3 * e] = factor * (hx - back * x);
  grad_vectors[3 * e + 1] = factor * (hy - back * y);
  grad_vectors[3 * e + 2] = factor * (hz - back * z);
}

}  // namespace

template <typename T>
void edge_norm_cuda(const T* vectors, T* distances, int64_t edges, Stream stream) {
  if (edges == 0) return;
  launch("edge_norm_kernel", edge_norm_kernel<T>, dim3(blocks_for(edges, threads)), dim3(threads),
         0, stream, vectors, distances, edges);
}

template <typename T>
void edge_norm_grad_cuda(const T* grad_distances, const T* vectors, T* grad_vectors, int64_t edges,
                         Stream stream) {
  if (edges == 0) return;
  launch("edge_norm_grad_kernel", edge_norm_grad_kernel<T>, dim3(blocks_for(edges, threads)),
         dim3(threads), 0, stream, grad_distances, vectors, grad_vectors, edges);
}

template <typename T>
void edge_norm_hvp_cuda(const T* h, const T* grad_distances, const T* vectors,
                        T* grad_grad_distances, T* grad_vectors, int64_t edges, Stream stream) {
  if (edges == 0) return;
  launch("edge_norm_hvp_kernel", edge_norm_hvp_kernel<T>, dim3(blocks_for(edges, threads)),
         dim3(threads), 0, stream, h, grad_distances, vectors, grad_grad_distances, grad_vectors,
         edges);
}

#define MOLKERN_INSTANTIATE(T)                                                                  \
  template void edge_vectors_cuda<T>(const Adjacency&, const Images&, const T*, const T*, T*,   \
                                     Stream);                                                   \
  template void edge_distances_cuda<T>(const Adjacency&, const Images&, const T*, const T*, T*, \
                                       Stream);                                                 \
  template void edge_vectors_adjoint_cuda<T>(const Adjacency&, const Adjacency&, const Images&, \
                                             const T*, T*, T*, T*, Stream);                     \
  template void edge_norm_cuda<T>(const T*, T*, int64_t, Stream);                               \
  template void edge_norm_grad_cuda<T>(const T*, const T*, T*, int64_t, Stream);                \
  template void edge_norm_hvp_cuda<T>(const T*, const T*, const T*, T*, T*, int64_t, Stream);
MOLKERN_INSTANTIATE(float)
MOLKERN_INSTANTIATE(double)

}  // namespace molkern
