#include <algorithm>

#include "common/launch.h"
#include "common/warp.h"
#include "radial/radial.h"
#include "radial/radial_math.h"

namespace molkern {
namespace {

constexpr int threads = 256;
constexpr int warps = threads / warp_lanes;
constexpr int value_edges = 128;  // of a block of radial_basis_value
constexpr int team_edges = 8;     // that a team of lanes works on together
constexpr int fewest_lanes = 8;   // of a team
constexpr int most_edges = threads / fewest_lanes * team_edges;
constexpr int64_t most_parts = 1024;  // blocks that sum derivatives of parameters
constexpr int sum_columns = 8;

template <typename T>
struct ValueTile {
  T z[value_edges], inverse_z[value_edges], near_zero[value_edges], c[value_edges];
};

// y = c b. A block computes the terms of its edges, then walks their rows as one.
// Must move: y once (E K numbers written), d once.
template <typename T, RadialBasis basis>
__global__ void __launch_bounds__(threads)
    radial_basis_value(RadialConstants<T> form, const T* __restrict__ d, const T* __restrict__ p,
                       const T* __restrict__ q, T* __restrict__ y, int64_t edges, int functions) {
  ValueTile<T>& tile = block_shared<ValueTile<T>>();
  const int64_t first = int64_t{blockIdx.x} * value_edges;
  const int count = static_cast<int>(min(int64_t{value_edges}, edges - first));
  const int own = threadIdx.x;
  if (own < count) {
    const RadialEdge<T> edge = radial_edge(form, d[first + own]);
    tile.z[own] = edge.z;
    tile.inverse_z[own] = edge.inverse_z;
    tile.near_zero[own] = edge.near_zero;
    tile.c[own] = edge.c;
  }
  __syncthreads();
  int e = threadIdx.x / functions, k = threadIdx.x % functions;
  const int step_e = threads / functions, step_k = threads % functions;
  T* out = y + first * functions;
  for (int64_t i = threadIdx.x; e < count; i += threads) {
    RadialEdge<T> edge;
    edge.z = tile.z[e];
    edge.inverse_z = tile.inverse_z[e];
    edge.near_zero = tile.near_zero[e];
    out[i] = tile.c[e] * radial_value<basis>(edge, p[k], q ? q[k] : T(0));
    e += step_e;
    k += step_k;
    if (k >= functions) {
      k -= functions;
      ++e;
    }
  }
}

// What the gradient and the product need: arrays of the edges [E] and [E, K], of the functions [K],
// null where absent, and the parameter sums of the blocks, [parts, 2, K].
template <typename T>
struct RadialArrays {
  const T *g, *d, *p, *q, *hd, *hp, *hq;
  T *tg, *td, *parts;
  int64_t edges;
  int functions;
};

template <typename T>
struct SumsTile {
  RadialEdge<T> edge[most_edges];
  T hd[most_edges];
  T part[2][warps][warp_lanes];
};

template <typename T>
__device__ __forceinline__ T read(const T* values, int64_t k) {
  return values ? values[k] : T(0);
}

// The factors of g in the sums over k (y_d) and over the edges (y_p, y_q), and in the product that
// of tg (y).
template <RadialBasis basis, bool parameters, bool product, typename T>
__device__ __forceinline__ RadialProduct<T> radial_terms(const RadialEdge<T>& edge, T p, T q, T hd,
                                                         T hp, T hq) {
  if constexpr (product) {
    const RadialHessian<T> f = radial_hessian<basis>(edge, p, q);
    RadialProduct<T> t = product_along_d(edge, f, hd);
    if constexpr (parameters) {
      const RadialProduct<T> more = product_along_pq(edge, f, hp, hq);
      t = {t.y + more.y, t.y_d + more.y_d, t.y_p + more.y_p, t.y_q + more.y_q};
    }
    return t;
  } else {
    const RadialGradient<T> f = radial_gradient<basis>(edge, p, q);
    return {T(0), edge.c_d * f.b + edge.c_z * f.b_z, edge.c * f.b_p, edge.c * f.b_q};
  }
}

// Adds the teams' sums of function k to the block's; `start` is true for the block's first edges.
template <typename T>
__device__ __forceinline__ void add_parameters(SumsTile<T>& tile, const RadialArrays<T>& arrays,
                                               T sum_p, T sum_q, int first_k, int lanes,
                                               bool start) {
  const int lane = threadIdx.x % warp_lanes, warp = threadIdx.x / warp_lanes;
  sum_p = sum_lanes(sum_p, lanes);
  sum_q = sum_lanes(sum_q, lanes);
  if (lane < lanes) {
    tile.part[0][warp][lane] = sum_p;
    tile.part[1][warp][lane] = sum_q;
  }
  __syncthreads();
  const int which = warp, k = first_k + lane;  // the first two warps add, for p and for q
  if (which < 2 && lane < lanes && k < arrays.functions) {
    T* part = arrays.parts + (int64_t{blockIdx.x} * 2 + which) * arrays.functions + k;
    T total = start ? T(0) : *part;
    for (int w = 0; w < warps; ++w) total += tile.part[which][w][lane];
    *part = total;
  }
  __syncthreads();
}

// One block of edges: `team_edges` for every team of lanes, which are dealt the functions.
template <RadialBasis basis, bool parameters, bool product, typename T>
__device__ __forceinline__ void sum_edges(SumsTile<T>& tile, const RadialArrays<T>& arrays,
                                          int64_t first, int count, int lanes, bool start) {
  const int lane = threadIdx.x % lanes, team = threadIdx.x / lanes, teams = threads / lanes;
  T sums[team_edges] = {};
  for (int first_k = 0; first_k < arrays.functions; first_k += lanes) {
    const int k = first_k + lane;
    const bool in_row = k < arrays.functions;
    // A lane beyond the row computes too: a width of 1 keeps it finite at any distance.
    const T p = in_row ? arrays.p[k] : T(0), q = in_row ? read(arrays.q, k) : T(1);
    const T hp = parameters && product && in_row ? read(arrays.hp, k) : T(0);
    const T hq = parameters && product && in_row ? read(arrays.hq, k) : T(0);
    T g[team_edges] = {}, sum_p = 0, sum_q = 0;
#pragma unroll
    for (int m = 0; m < team_edges; ++m) {
      const int e = m * teams + team;
      if (in_row && e < count) g[m] = __ldcs(arrays.g + (first + e) * arrays.functions + k);
    }
#pragma unroll
    for (int m = 0; m < team_edges; ++m) {
      const int e = m * teams + team;
      const auto terms = radial_terms<basis, parameters, product>(
          tile.edge[e], p, q, product ? tile.hd[e] : T(0), hp, hq);
      sums[m] += g[m] * terms.y_d;
      sum_p += g[m] * terms.y_p;
      sum_q += g[m] * terms.y_q;
      if (product && in_row && e < count)
        __stcs(arrays.tg + (first + e) * arrays.functions + k, terms.y);
    }
    if (parameters && arrays.parts)
      add_parameters(tile, arrays, sum_p, sum_q, first_k, lanes, start);
  }
#pragma unroll
  for (int m = 0; m < team_edges; ++m) {
    const int e = m * teams + team;
    const T sum = sum_lanes(sums[m], 1, lanes);
    if (lane == 0 && e < count) arrays.td[first + e] = sum;
  }
}

// The gradient: gd = sum over k of g y_d, and the blocks' parts of gp and gq; or the product.
// A block takes blocks of edges in turn, so that few parts remain to be added.
// Must move: g once (E K numbers), d and gd once; the product also writes tg (E K numbers).
template <typename T, RadialBasis basis, bool parameters, bool product>
__global__ void __launch_bounds__(threads, sizeof(T) == 8 ? 1
                                           : product      ? 2
                                                          : 3)
    radial_basis_sums(RadialConstants<T> form, RadialArrays<T> arrays, int lanes) {
  SumsTile<T>& tile = block_shared<SumsTile<T>>();
  const int block_edges = threads / lanes * team_edges, own = threadIdx.x;
  for (int64_t first = int64_t{blockIdx.x} * block_edges; first < arrays.edges;
       first += int64_t{gridDim.x} * block_edges) {
    const int count = static_cast<int>(min(int64_t{block_edges}, arrays.edges - first));
    if (own < block_edges) {
      const bool there = own < count;
      tile.edge[own] = there ? radial_edge(form, arrays.d[first + own]) : RadialEdge<T>{};
      if (product) tile.hd[own] = there ? read(arrays.hd, first + own) : T(0);
    }
    __syncthreads();
    sum_edges<basis, parameters, product>(tile, arrays, first, count, lanes,
                                          first == int64_t{blockIdx.x} * block_edges);
    __syncthreads();
  }
}

struct ColumnSums {
  double part[warps][sum_columns];
};

// Adds the blocks' parts [parts, 2, K] in a fixed order.
template <typename T>
__global__ void __launch_bounds__(threads)
    radial_basis_sum_parts(const T* __restrict__ parts, int64_t count, int functions,
                           T* __restrict__ sum_p, T* __restrict__ sum_q) {
  ColumnSums& shared = block_shared<ColumnSums>();
  const int own = threadIdx.x % sum_columns;
  const int64_t columns = 2 * int64_t{functions};
  const int64_t column = int64_t{blockIdx.x} * sum_columns + own;
  double sum = 0;
  if (column < columns)
    for (int64_t k = threadIdx.x / sum_columns; k < count; k += threads / sum_columns)
      sum += parts[k * columns + column];
  sum = sum_lanes(sum, sum_columns);
  if (threadIdx.x % warp_lanes < sum_columns) shared.part[threadIdx.x / warp_lanes][own] = sum;
  __syncthreads();
  if (threadIdx.x >= sum_columns || column >= columns) return;
  double total = 0;
  for (int w = 0; w < warps; ++w) total += shared.part[w][own];
  T* result = column < functions ? sum_p : sum_q;
  if (result) result[column % functions] = T(total);
}

int team_lanes(int64_t functions) { return std::max(row_shape(functions, 1).lanes, fewest_lanes); }

int64_t edge_blocks(int64_t edges, int64_t functions) {
  const int block_edges = threads / team_lanes(functions) * team_edges;
  return (edges + block_edges - 1) / block_edges;
}

int64_t part_count(int64_t edges, int64_t functions) {
  return std::min(edge_blocks(edges, functions), most_parts);
}

template <typename T, RadialBasis basis, bool product>
void run_sums(const RadialForm& form, RadialArrays<T> arrays, T* tp, T* tq, Stream stream) {
  const bool wanted = tp || tq, parameters = wanted || arrays.hp || arrays.hq;
  const int lanes = team_lanes(arrays.functions);
  const int64_t parts = part_count(arrays.edges, arrays.functions);
  const int64_t blocks = wanted ? parts : edge_blocks(arrays.edges, arrays.functions);
  if (!wanted) arrays.parts = nullptr;
  const auto kernel = parameters ? radial_basis_sums<T, basis, true, product>
                                 : radial_basis_sums<T, basis, false, product>;
  if (arrays.edges > 0)
    launch("radial_basis_sums", kernel, dim3(static_cast<unsigned>(blocks)), dim3(threads), 0,
           stream, radial_constants<T>(form), arrays, lanes);
  if (wanted)
    launch("radial_basis_sum_parts", radial_basis_sum_parts<T>,
           dim3(blocks_for(2 * int64_t{arrays.functions}, sum_columns)), dim3(threads), 0, stream,
           arrays.parts, parts, arrays.functions, tp, tq);
}

}  // namespace

int64_t radial_basis_workspace(int64_t edges, int64_t functions) {
  return part_count(edges, functions) * 2 * functions;
}

template <typename T>
void radial_basis_cuda(const RadialForm& form, const T* d, const T* p, const T* q, T* y,
                       int64_t edges, int64_t functions, Stream stream) {
  if (edges == 0 || functions == 0) return;
  with_formulas(form.basis, [&](auto basis) {
    launch("radial_basis_value", radial_basis_value<T, basis()>,
           dim3(blocks_for(edges, value_edges)), dim3(threads), 0, stream,
           radial_constants<T>(form), d, p, q, y, edges, static_cast<int>(functions));
  });
}

template <typename T>
void radial_basis_grad_cuda(const RadialForm& form, const T* g, const T* d, const T* p, const T* q,
                            T* gd, T* gp, T* gq, T* workspace, int64_t edges, int64_t functions,
                            Stream stream) {
  const RadialArrays<T> arrays{g,       d,         p,       q,
                               nullptr, nullptr,   nullptr, nullptr,
                               gd,      workspace, edges,   static_cast<int>(functions)};
  with_formulas(form.basis,
                [&](auto basis) { run_sums<T, basis(), false>(form, arrays, gp, gq, stream); });
}

template <typename T>
void radial_basis_hvp_cuda(const RadialForm& form, const T* hd, const T* hp, const T* hq,
                           const T* g, const T* d, const T* p, const T* q, T* tg, T* td, T* tp,
                           T* tq, T* workspace, int64_t edges, int64_t functions, Stream stream) {
  const RadialArrays<T> arrays{g,  d,  p,  q,         hd,    hp,
                               hq, tg, td, workspace, edges, static_cast<int>(functions)};
  with_formulas(form.basis,
                [&](auto basis) { run_sums<T, basis(), true>(form, arrays, tp, tq, stream); });
}

#define MOLKERN_INSTANTIATE(T)                                                                     \
  template void radial_basis_cuda<T>(const RadialForm&, const T*, const T*, const T*, T*, int64_t, \
                                     int64_t, Stream);                                             \
  template void radial_basis_grad_cuda<T>(const RadialForm&, const T*, const T*, const T*,         \
                                          const T*, T*, T*, T*, T*, int64_t, int64_t, Stream);     \
  template void radial_basis_hvp_cuda<T>(const RadialForm&, const T*, const T*, const T*,          \
                                         const T*, const T*, const T*, const T*, T*, T*, T*, T*,   \
                                         T*, int64_t, int64_t, Stream);
MOLKERN_INSTANTIATE(float)
MOLKERN_INSTANTIATE(double)

}  // namespace molkern
