// Messages of DTNN whose filters are splines of the distance, summed, and their derivatives.
//
//   value     y[i, c] = sum over edges e = j -> i of m[e, c],   m = tanh(z),
//             z[e, c] = sum_k W[c, k] p[e, k],   p[e, k] = x[j, k] f[e, k],   f[e, k] = f_k(d[e])
//   gradient  of s = <g, y>, with u = g[i] (1 - m^2) and q[e, k] = sum_c W[c, k] u[e, c]:
//             gx[j, k] = sum over edges e = j -> i of q f
//             gd[e]    = sum_k q x f'
//             gC[r, k] = sum_e b_{r - m}(d[e]) q x
//             gW[c, k] = sum_e u[e, c] p[e, k]
//   product   of the Hessian of s with h = (hx, hd, hC, hW): the derivative of y, gx, gd, gC and gW
//             along h. With v = hd f' + (the spline of hC at d) the change of f, v' that of f', and
//             p~ = hx f + x v,  z~ = W p~ + hW p,  u~ = -2 m z~ u,  q~ = W^T u~ + hW^T u:
//             gg[i, c] = sum_e (1 - m^2) z~      gx[j, k] = sum_e q~ f + q v
//             gd[e]    = sum_k q~ x f' + q (hx f' + x v')
//             gC[r, k] = sum_e b (q~ x + q hx) + b' hd q x
//             gW[c, k] = sum_e u~ p + u p~
//
// This is the interaction of Schütt et al., Nat. Commun. 8, 13890 (2017), v_ij = tanh(W^fc ((W^cf
// c_j + b) o (W^df d_ij + b'))), with x the projected features of the atoms and f, there a linear
// map of Gaussians, as the splines of splines/spline_math.h. An edge where f is zero has a message
// of zero. Everything that belongs to an edge is computed where it is used and never stored.
//
// Cost per edge: 2 C K FLOP for z and as many each for q and for gW; a product of the Hessian takes
// each twice, hW once more, and z a second time for gg, which is a sum over other rows. The rest
// grows with C + K: splines, 2 (p + 1) K FLOP per derivative, and C hyperbolic tangents.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/graph.h"
#include "common/isa.h"
#include "common/stream.h"
#include "splines/spline_cfconv.h"

namespace molkern {

// The arguments of the value; filters.features is K.
template <typename T>
struct DtnnInputs {
  SplineFilters<T> filters;
  const T* x;       // [atoms, K]
  const T* weight;  // [C, K]
  int64_t channels;
};

// A direction to differentiate along; absent parts are null and count as zero.
template <typename T>
struct DtnnDirection {
  const T* x;          // [atoms, K]
  const T* distances;  // [E]
  const T* table;      // as the table
  const T* weight;     // [C, K]
};

template <typename T>
struct DtnnGradients {
  T* x;          // [rows, K], overwritten
  T* distances;  // [E]; edges that no row names are left alone
  T* table;      // as the table, overwritten, or null
  T* weight;     // [C, K], overwritten, or null
};

// Blocks of rows whose parts of gC and gW are summed apart and then added in order. Their number
// does not depend on that of the threads, so that sums have the same bits for every one. Each
// has as many edges as the table has rows, so that what it takes to clear and add its parts does
// not count; at most 16, which bounds the memory.
inline int64_t dtnn_blocks(int64_t edges, int64_t table_rows) {
  return std::clamp<int64_t>(edges / table_rows, 1, 16);
}
// Rows of the parts begin at whole vectors.
inline int64_t dtnn_padded(int64_t factors) { return (factors + 15) / 16 * 16; }

// y, or gg with a direction; rows are receivers.
template <Isa isa, typename T>
void dtnn_value_cpu(const Adjacency& receivers, const DtnnInputs<T>& in,
                    const DtnnDirection<T>* direction,  // or null
                    T* y,                               // [rows, C], overwritten
                    int threads);

// The gradient, or with a direction the product but for gg; rows are senders.
template <Isa isa, typename T>
void dtnn_grad_cpu(const Adjacency& senders, const DtnnInputs<T>& in,
                   const T* g,                         // [atoms, C]
                   const DtnnDirection<T>* direction,  // or null
                   const T* added,                     // [E], added to gd, or null
                   const DtnnGradients<T>& gradients,
                   T* parts,  // [blocks, (intervals + degree) + C, padded K] for gC and gW, or null
                   int64_t blocks, int threads);

// On a GPU the gradient of the table takes the edges by interval instead, and that of W has a fixed
// number of blocks of rows.
constexpr int64_t dtnn_weight_blocks = 512;

// Numbers that the kernels for GPUs need to work in.
inline int64_t dtnn_cuda_workspace(int64_t rows, int64_t channels, int64_t factors,
                                   int64_t intervals, int degree, bool need_table,
                                   bool need_weight) {
  const int64_t transposed = 2 * channels * factors;
  const int64_t weight = need_weight ? std::min(rows, dtnn_weight_blocks) * channels * factors : 0;
  return transposed + weight + (need_table ? intervals * (degree + 1) * factors : 0);
}

// Channels and factors must not be zero.
template <typename T>
void dtnn_value_cuda(const Adjacency& receivers, const DtnnInputs<T>& in,
                     const DtnnDirection<T>* direction, T* y, T* workspace, Stream stream);

template <typename T>
void dtnn_grad_cuda(const Adjacency& senders,
                    const SplineBins* bins,  // null where the table's gradient is not needed
                    const DtnnInputs<T>& in, const T* g, const DtnnDirection<T>* direction,
                    const T* added, const DtnnGradients<T>& gradients, T* workspace, Stream stream);

}  // namespace molkern
