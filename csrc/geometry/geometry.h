// Edge vectors and distances of a periodic graph, and their derivatives.
//
//   edge_vectors:          v[e] = (x[j] - x[i]) + s[e] . C[system of i]      for edge e = j -> i
//   edge_distances:        d[e] = |v[e]|, without storing v
//   edge_vectors_adjoint:  given g[e] = dL/dv[e],
//                          dL/dx[a]  = sum over edges sent by a of g - sum over edges received of g
//                          dL/dC[b]  = sum over edges of system b of outer(s[e], g[e])
//   edge_norm:             d[e] = |v[e]|
//   edge_norm_grad:        gv = gd v / d
//   edge_norm_hvp:         the derivative of <h, gv>, h[e] a vector:
//                          ggd = <h, u>,  gv = gd (h - u <h, u>) / d,   u = v / d
// At d = 0 every derivative of the norm is zero. edge_vectors is linear, so it and its adjoint are
// each other's derivatives to any order. Sums run in a fixed order, whatever the thread count.
//
// Cost per edge: a vector reads 2 positions (in cache), 4 index bytes and 12 shift bytes and writes
// 3 numbers, a distance 1; the adjoint reads 3 numbers twice. All are bound by memory bandwidth.
#pragma once

#include <cstdint>

#include "common/graph.h"
#include "common/isa.h"
#include "common/stream.h"

namespace molkern {

// Positions, cells and image shifts of a batch of systems. Without periodicity `shifts` is null and
// `cell` and `system` are not read.
struct Images {
  const int32_t* shifts;  // [E, 3] in whole cells, or null
  const int32_t* system;  // [atoms] system of each atom, or null where there is only one
  int64_t systems;
};

template <Isa isa, typename T>
void edge_vectors_cpu(const Adjacency& receivers,  // rows are receivers, neighbors are senders
                      const Images& images,
                      const T* positions,  // [atoms, 3]
                      const T* cell,       // [systems, 3, 3], rows are lattice vectors
                      T* vectors,          // [E, 3]; edges that no row names are left alone
                      int threads);

template <Isa isa, typename T>
void edge_distances_cpu(const Adjacency& receivers, const Images& images, const T* positions,
                        const T* cell,
                        T* distances,  // [E]; edges that no row names are left alone
                        int threads);

template <Isa isa, typename T>
void edge_vectors_adjoint_cpu(const Adjacency& receivers,
                              const Adjacency& senders,  // the transpose: rows are senders
                              const Images& images,
                              const T* grad_vectors,  // [E, 3]
                              T* grad_positions,      // [atoms, 3], overwritten
                              T* grad_cell,           // [systems, 3, 3], overwritten, or null
                              int threads);

template <Isa isa, typename T>
void edge_norm_cpu(const T* vectors, T* distances, int64_t edges, int threads);

template <Isa isa, typename T>
void edge_norm_grad_cpu(const T* grad_distances,  // [E]
                        const T* vectors,         // [E, 3]
                        T* grad_vectors,          // [E, 3]
                        int64_t edges, int threads);

template <Isa isa, typename T>
void edge_norm_hvp_cpu(const T* h,               // [E, 3] cotangent of edge_norm_grad's result
                       const T* grad_distances,  // [E]
                       const T* vectors,         // [E, 3]
                       T* grad_grad_distances,   // [E]
                       T* grad_vectors,          // [E, 3]
                       int64_t edges, int threads);

template <typename T>
void edge_vectors_cuda(const Adjacency& receivers, const Images& images, const T* positions,
                       const T* cell, T* vectors, Stream stream);

template <typename T>
void edge_distances_cuda(const Adjacency& receivers, const Images& images, const T* positions,
                         const T* cell, T* distances, Stream stream);

// `workspace` holds edge_vectors_adjoint_workspace(rows) numbers when grad_cell is wanted.
int64_t edge_vectors_adjoint_workspace(int64_t atoms);

template <typename T>
void edge_vectors_adjoint_cuda(const Adjacency& receivers, const Adjacency& senders,
                               const Images& images, const T* grad_vectors, T* grad_positions,
                               T* grad_cell, T* workspace, Stream stream);

template <typename T>
void edge_norm_cuda(const T* vectors, T* distances, int64_t edges, Stream stream);

template <typename T>
void edge_norm_grad_cuda(const T* grad_distances, const T* vectors, T* grad_vectors, int64_t edges,
                         Stream stream);

template <typename T>
void edge_norm_hvp_cuda(const T* h, const T* grad_distances, const T* vectors,
                        T* grad_grad_distances, T* grad_vectors, int64_t edges, Stream stream);

}  // namespace molkern
