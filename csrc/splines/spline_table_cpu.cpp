// The gradient of the table: edges by interval, whose products meet the same rows of coefficients.
#include <algorithm>

#include "common/parallel.h"
#include "splines/spline_cfconv.h"
#include "splines/tiles_cpu.h"

namespace molkern {
namespace {

constexpr int64_t block = spline_block;

// An edge of an interval: where its two atoms' features are, and what multiplies their products.
template <int degree, bool directed, typename T>
struct Pair {
  int64_t sender, receiver;
  T product[degree + 1];  // for (hx or x) g
  T steep[degree + 1];    // for x g, with a direction
};

// Calls use(pairs, count) for the edges of an interval, some at a time.
template <int degree, bool directed, typename T, typename Use>
MOLKERN_INLINE void for_pairs(const SplineBins& bins, int32_t interval,
                              const SplineFilters<T>& filters, const SplineDirection<T>* along,
                              Use&& use) {
  Pair<degree, directed, T> pairs[chunk];
  const int64_t end = bins.ptr[interval + 1];
  for (int64_t e = bins.ptr[interval]; e < end;) {
    int count = 0;
    for (; e < end && count < chunk; ++e) {
      const int64_t edge = bins.edges[e];
      auto& pair = pairs[count++];
      pair.sender = bins.senders[e] * filters.features;
      pair.receiver = bins.receivers[e] * filters.features;
      const auto weights =
          spline_weights<degree, directed ? 1 : 0>(filters.grid, filters.distances[edge], interval);
      std::copy_n(weights.weight[0], degree + 1, pair.product);
      if constexpr (directed) {
        const T h = along->distances ? along->distances[edge] : T(0);
        for (int k = 0; k <= degree; ++k) pair.steep[k] = weights.weight[1][k] * h;
      }
    }
    use(pairs, count);
  }
}

// One tile of the sums over some edges of an interval.
template <int degree, bool directed, typename T>
struct TableTile {
  const SplineFilters<T>& filters;
  const T* x;
  const T* g;
  const T* x_change;  // of the direction, or null
  T* sums;            // [degree + 1, F]
  const Pair<degree, directed, T>* pairs;
  int count;

  template <typename V, int vectors>
  MOLKERN_INLINE void run(int64_t f) const {
    constexpr int lanes = sizeof(V) / sizeof(T);
    const int64_t features = filters.features;
    V sum[degree + 1][vectors];
    for (int k = 0; k <= degree; ++k)
      for (int v = 0; v < vectors; ++v) sum[k][v] = load<V>(sums + k * features + f + v * lanes);
    for (int e = 0; e < count; ++e) {
      const auto& pair = pairs[e];
      for (int v = 0; v < vectors; ++v) {
        const int64_t at = f + v * lanes;
        const V other = load<V>(g + pair.receiver + at);
        const V both = load<V>(x + pair.sender + at) * other;
        const auto& weight = directed ? pair.steep : pair.product;
        for (int k = 0; k <= degree; ++k) sum[k][v] += splat<V>(weight[k]) * both;
        if (directed && x_change) {
          const V changed = load<V>(x_change + pair.sender + at) * other;
          for (int k = 0; k <= degree; ++k) sum[k][v] += splat<V>(pair.product[k]) * changed;
        }
      }
    }
    for (int k = 0; k <= degree; ++k)
      for (int v = 0; v < vectors; ++v) store<V>(sums + k * features + f + v * lanes, sum[k][v]);
  }
};

// Blocks of intervals add up in rows of their own, those that overlap are added in order.
template <Isa isa, int degree, bool directed, typename T>
void table_rows(const SplineBins& bins, const SplineFilters<T>& filters, const T* x, const T* g,
                const SplineDirection<T>* along, T* gc, T* workspace, int threads) {
  const int64_t features = filters.features, intervals = filters.grid.intervals;
  const int64_t blocks = (intervals + block - 1) / block, rows = block + degree;
  parallel_for(threads, blocks, [&](int64_t b) {
    T* sums = workspace + b * rows * features;
    std::fill_n(sums, rows * features, T(0));
    const int64_t first = b * block, end = std::min(first + block, intervals);
    for (int64_t m = first; m < end; ++m) {
      const auto add = [&](const auto* pairs, int count) {
        for_tiles<isa, T, 2>(
            features, TableTile<degree, directed, T>{filters, x, g, along ? along->x : nullptr,
                                                     sums + (m - first) * features, pairs, count});
      };
      for_pairs<degree, directed>(bins, static_cast<int32_t>(m), filters, along, add);
    }
  });
  parallel_for(threads, intervals + degree, [&](int64_t row) {
    T* sum = gc + row * features;
    std::fill_n(sum, features, T(0));
    const int64_t last = std::min(row / block, blocks - 1);
    for (int64_t b = std::max<int64_t>(0, (row - degree) / block); b <= last; ++b) {
      if (row - b * block >= rows) continue;
      const T* part = workspace + (b * rows + row - b * block) * features;
      for (int64_t f = 0; f < features; ++f) sum[f] += part[f];
    }
  });
}

}  // namespace

template <Isa isa, typename T>
void spline_table_grad_cpu(const SplineBins& bins, const SplineFilters<T>& filters, const T* x,
                           const T* g, const SplineDirection<T>* direction, T* gc, T* workspace,
                           int threads) {
  with_kind(filters.degree, direction, [&]<int degree, bool directed>() {
    table_rows<isa, degree, directed>(bins, filters, x, g, direction, gc, workspace, threads);
  });
}

#define MOLKERN_INSTANTIATE(T)                                                                   \
  template void spline_table_grad_cpu<Isa::MOLKERN_ISA, T>(                                      \
      const SplineBins&, const SplineFilters<T>&, const T*, const T*, const SplineDirection<T>*, \
      T*, T*, int);
MOLKERN_INSTANTIATE(float)
MOLKERN_INSTANTIATE(double)

}  // namespace molkern
