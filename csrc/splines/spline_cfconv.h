// Continuous-filter convolution whose filters are splines of the distance, and its derivatives.
//
//   value     y[i, f]  = sum over edges e = j -> i of x[j, f] w[e, f],   w[e, f] = w_f(d[e])
//   gradient  of s = <g, y>:
//             gx[j, f] = sum over edges e = j -> i of g[i, f] w[e, f]
//             gd[e]    = sum_f x[j, f] g[i, f] w'[e, f]
//             gC[r, f] = sum_e b_{r - m}(d[e]) x[j, f] g[i, f]
//   product   of the Hessian of s with h = (hx, hd, hC): the derivative of y, gx, gd and gC along
//   h,
//             with v[e, f] = hd w' + (the spline of hC at d) the change of w:
//             gg[i, f] = sum_e hx w + x v          gx[j, f] = sum_e g v
//             gd[e]    = sum_f g (hx w' + x v')    gC[r, f] = sum_e (hx b + x hd b') g
// with the spline of spline_math.h. Filters are computed where they are used and never stored; both
// directions of a graph walk rows in order, and the gradient of the table walks the edges by
// interval, so that results have the same bits on every run and for every thread count.
//
// Cost per edge and feature, degree p: the value reads p + 1 coefficients and one feature and takes
// 2 (p + 2) FLOP, the gradient by x and d 2 (2 p + 5). The table (a few hundred kB) lives in the
// second cache, so that its bandwidth, (p + 1) F sizeof(T) per edge, is the floor.
#pragma once

#include <cstdint>

#include "common/graph.h"
#include "common/isa.h"
#include "common/stream.h"
#include "splines/spline_math.h"

namespace molkern {

// The filters: coefficients [intervals + degree, F] and the distances that they are taken at.
template <typename T>
struct SplineFilters {
  SplineGrid<T> grid;
  const T* table;      // [intervals + degree, F]
  const T* distances;  // [E]
  int degree;          // 3 or 5
  int64_t features;    // F
};

// Edges by interval: those of interval m are entries ptr[m] ... ptr[m + 1], in ascending order.
struct SplineBins {
  const int32_t* ptr;        // [intervals + 1]
  const int32_t* edges;      // [E], beyond ptr[intervals] unused
  const int32_t* senders;    // [E]
  const int32_t* receivers;  // [E]
  int64_t count;             // E
};

// A direction to differentiate along; absent parts are null and count as zero.
template <typename T>
struct SplineDirection {
  const T* x;          // [atoms, F]
  const T* distances;  // [E]
  const T* table;      // as the table
};

// Numbers that spline_table_grad needs to work in, on the CPU and for so many edges on a GPU.
int64_t spline_table_workspace(int64_t intervals, int degree, int64_t features);
constexpr int spline_block = 32;  // intervals that it adds up at a time, in rows of their own
int64_t spline_table_workspace_cuda(int64_t edges, int64_t intervals, int degree, int64_t features);

// y, or gg with a direction; rows are receivers.
template <Isa isa, typename T>
void spline_value_cpu(const Adjacency& receivers,
                      const int32_t* reverse,  // [E] of a symmetric graph, or null
                      const SplineFilters<T>& filters,
                      const T* x,                           // [atoms, F]
                      const SplineDirection<T>* direction,  // or null
                      T* y,                                 // [rows, F], overwritten
                      int threads);

// gx and gd, of the gradient or, with a direction, of the product; rows are senders. Edges that no
// row names are left alone.
template <Isa isa, typename T>
void spline_grad_cpu(
    const Adjacency& senders,
    bool symmetric,  // whether its `edges` are the reverse edges of a symmetric graph
    const SplineFilters<T>& filters,
    const T* x,                           // [rows, F]
    const T* g,                           // [atoms, F]
    const SplineDirection<T>* direction,  // or null
    const T* added,                       // [E], added to gd, or null
    T* gx,                                // [rows, F], overwritten
    T* gd,                                // [E]
    int threads);

// gC, of the gradient or, with a direction, of the product.
template <Isa isa, typename T>
void spline_table_grad_cpu(const SplineBins& bins, const SplineFilters<T>& filters, const T* x,
                           const T* g, const SplineDirection<T>* direction,
                           T* gc,  // [intervals + degree, F], overwritten
                           T* workspace, int threads);

template <typename T>
void spline_value_cuda(const Adjacency& receivers, const SplineFilters<T>& filters, const T* x,
                       const SplineDirection<T>* direction, T* y, Stream stream);

template <typename T>
void spline_grad_cuda(const Adjacency& senders, const SplineFilters<T>& filters, const T* x,
                      const T* g, const SplineDirection<T>* direction, const T* added, T* gx, T* gd,
                      Stream stream);

template <typename T>
void spline_table_grad_cuda(const SplineBins& bins, const SplineFilters<T>& filters, const T* x,
                            const T* g, const SplineDirection<T>* direction, T* gc, T* workspace,
                            Stream stream);

}  // namespace molkern
