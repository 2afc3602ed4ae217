// Continuous-filter convolution with explicit filters, and the product that is its other half.
//
//   convolve:      y[r, f]    = sum over entries k of row r of x[neighbors[k], f] * w[edge(k), f]
//   edge_product:  p[edge(k), f] = a[r, f] * b[neighbors[k], f]   for every entry k of every row r
//
// s = sum_kf x w g is linear in each of its three factors, so these two, walked over the graph in
// either direction, are each other's derivatives to any order (Schuett et al., J. Chem. Phys. 148,
// 241722 (2018), eq. 3 for the convolution). A row sums its entries in order: the result has the
// same bits on every run and for every thread count.
//
// Cost per entry and feature: convolve reads one filter value and one feature (in cache), 2 FLOP;
// edge_product writes one value, 1 FLOP. The floor is the filter's bytes, E * F * sizeof(T), over
// memory bandwidth.
#pragma once

#include <cstdint>

#include "common/graph.h"
#include "common/isa.h"
#include "common/stream.h"

namespace molkern {

template <Isa isa, typename T>
void convolve_cpu(const Adjacency& graph,
                  const T* x,  // [atoms, F]
                  const T* w,  // [E, F]
                  T* y,        // [rows, F], overwritten
                  int64_t features, int threads);

template <Isa isa, typename T>
void edge_product_cpu(const Adjacency& graph,
                      const T* a,  // [rows, F]
                      const T* b,  // [atoms, F]
                      T* p,        // [E, F]; edges that no row names are left alone
                      int64_t features, int threads);

template <typename T>
void convolve_cuda(const Adjacency& graph, const T* x, const T* w, T* y, int64_t features,
                   Stream stream);

template <typename T>
void edge_product_cuda(const Adjacency& graph, const T* a, const T* b, T* p, int64_t features,
                       Stream stream);

}  // namespace molkern
