// Rows are worked on in tiles of features that stay in registers while the entries of a row go by;
// the weights of an entry are computed once for all its tiles.
#include <algorithm>

#include "common/parallel.h"
#include "common/vector.h"
#include "splines/spline_cfconv.h"

namespace molkern {
namespace {

constexpr int chunk = 32;        // entries whose weights are computed together
constexpr int block = 32;        // intervals whose edges one task of the table's gradient adds up
constexpr int grad_vectors = 4;  // vectors of a tile: sums, filters and slopes fill 16 registers

template <typename V>
MOLKERN_INLINE Scalar<V> sum_of_lanes(V x) {
  if constexpr (sizeof(V) == sizeof(Scalar<V>))
    return x;
  else
    return lane_sum(x);
}

// Calls tile.template run<V, vectors>(first feature) until all features are done: wide tiles, then
// single vectors, then single numbers.
template <Isa isa, typename T, int vectors, typename Tile>
MOLKERN_INLINE void for_tiles(int64_t features, Tile&& tile) {
  constexpr int lanes = vector_lanes<isa, T>;
  using V = Vector<T, lanes>;
  int64_t f = 0;
  for (; f + vectors * lanes <= features; f += vectors * lanes) tile.template run<V, vectors>(f);
  for (; f + lanes <= features; f += lanes) tile.template run<V, 1>(f);
  for (; f < features; ++f) tile.template run<T, 1>(f);
}

// An entry of a row: the other atom's features, the first coefficients, and the weights.
template <int degree, int derivatives, typename T>
struct Entry {
  int64_t neighbor;  // offset of its features
  int64_t edge;
  int64_t first;  // offset of the coefficients
  SplineWeights<degree, derivatives, T> weights;
};

// Calls use(entries, count, ...) for the entries of a row that are not zero, some at a time.
template <int degree, int derivatives, typename T, typename Skip, typename Use>
MOLKERN_INLINE void for_entries(const Adjacency& graph, int64_t row,
                                const SplineFilters<T>& filters, Skip&& skip, Use&& use) {
  Entry<degree, derivatives, T> entries[chunk];
  const int64_t end = graph.row_ptr[row + 1];
  for (int64_t k = graph.row_ptr[row]; k < end;) {
    int count = 0;
    for (; k < end && count < chunk; ++k) {
      const int64_t edge = graph.edge(k);
      const T d = filters.distances[edge];
      if (spline_is_zero(filters.grid, d)) {
        skip(edge);
        continue;
      }
      auto& entry = entries[count++];
      entry.neighbor = graph.neighbors[k] * filters.features;
      entry.edge = edge;
      entry.weights =
          spline_weights<degree, derivatives>(filters.grid, d, spline_interval(filters.grid, d));
      entry.first = entry.weights.first * filters.features;
    }
    if (count) use(entries, count);
  }
}

// The rows of coefficients of one entry from a tile's first feature on.
template <int degree, typename T>
struct Coefficients {
  const T* row[degree + 1];

  MOLKERN_INLINE Coefficients(const T* first, int64_t features) {
#pragma GCC unroll 6
    for (int k = 0; k <= degree; ++k) row[k] = first + k * features;
  }
};

// A sum over k of weight[k] times the coefficients, which are read once for all sums.
template <typename V, int degree, typename T, typename... Weights>
MOLKERN_INLINE void splines_at(const Coefficients<degree, T>& coefficients, int64_t at, V* result,
                               const Weights&... weights) {
  const T(*weight[])[degree + 1] = {&weights...};
  constexpr int sums = sizeof...(weights);
  const V first = load<V>(coefficients.row[0] + at);
#pragma GCC unroll 2
  for (int n = 0; n < sums; ++n) result[n] = splat<V>((*weight[n])[0]) * first;
#pragma GCC unroll 6
  for (int k = 1; k <= degree; ++k) {
    const V c = load<V>(coefficients.row[k] + at);
#pragma GCC unroll 2
    for (int n = 0; n < sums; ++n) result[n] += splat<V>((*weight[n])[k]) * c;
  }
}

// One tile of a row of the value, or of its change along a direction.
template <int degree, bool directed, typename T>
struct ValueTile {
  static constexpr int derivatives = directed ? 1 : 0;
  const SplineFilters<T>& filters;
  const T* x;
  const SplineDirection<T>* along;
  T* y;  // the row
  const Entry<degree, derivatives, T>* entries;
  int count;

  template <typename V, int vectors>
  MOLKERN_INLINE void run(int64_t f) const {
    using Rows = Coefficients<degree, T>;
    constexpr int lanes = sizeof(V) / sizeof(T);
    const int64_t features = filters.features;
    V sum[vectors];
    for (int v = 0; v < vectors; ++v) sum[v] = load<V>(y + f + v * lanes);
    for (int e = 0; e < count; ++e) {
      const auto& entry = entries[e];
      const T* neighbor = x + entry.neighbor + f;
      const Rows rows(filters.table + entry.first + f, features);
      if constexpr (!directed) {
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) {
          V w;
          splines_at(rows, v * lanes, &w, entry.weights.weight[0]);
          sum[v] += w * load<V>(neighbor + v * lanes);
        }
      } else {
        const T h = along->distances ? along->distances[entry.edge] : T(0);
        T steep[degree + 1];
        for (int k = 0; k <= degree; ++k) steep[k] = entry.weights.weight[1][k] * h;
        const Rows change(along->table ? along->table + entry.first + f : rows.row[0], features);
        for (int v = 0; v < vectors; ++v) {
          V w[2];
          splines_at(rows, v * lanes, w, entry.weights.weight[0], steep);
          if (along->table) {
            V more;
            splines_at(change, v * lanes, &more, entry.weights.weight[0]);
            w[1] += more;
          }
          if (along->x) sum[v] += w[0] * load<V>(along->x + entry.neighbor + f + v * lanes);
          sum[v] += w[1] * load<V>(neighbor + v * lanes);
        }
      }
    }
    for (int v = 0; v < vectors; ++v) store<V>(y + f + v * lanes, sum[v]);
  }
};

// One tile of a row of gx, and its part of gd.
template <int degree, bool directed, typename T>
struct GradTile {
  static constexpr int derivatives = directed ? 2 : 1;
  const SplineFilters<T>& filters;
  const T* own;         // the row of x
  const T* own_change;  // of the direction's x, or null
  const T* g;
  const SplineDirection<T>* along;
  T* gx;  // the row
  const Entry<degree, derivatives, T>* entries;
  int count;
  T* gd;  // [count]

  template <typename V, int vectors>
  MOLKERN_INLINE void run(int64_t f) const {
    using Rows = Coefficients<degree, T>;
    constexpr int lanes = sizeof(V) / sizeof(T);
    V sum[vectors];
    for (int v = 0; v < vectors; ++v) sum[v] = load<V>(gx + f + v * lanes);
    for (int e = 0; e < count; ++e) {
      const auto& entry = entries[e];
      const auto& weight = entry.weights.weight;
      const T* neighbor = g + entry.neighbor + f;
      const Rows rows(filters.table + entry.first + f, filters.features);
      V part{};
      if constexpr (!directed) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
          V w[2];
          splines_at(rows, v * lanes, w, weight[0], weight[1]);
          const V other = load<V>(neighbor + v * lanes);
          sum[v] += w[0] * other;
          part += w[1] * (other * load<V>(own + f + v * lanes));
        }
      } else {
        const T h = along->distances ? along->distances[entry.edge] : T(0);
        T first[degree + 1], second[degree + 1];
        for (int k = 0; k <= degree; ++k) first[k] = weight[1][k] * h, second[k] = weight[2][k] * h;
        const Rows change(along->table ? along->table + entry.first + f : rows.row[0],
                          filters.features);
        for (int v = 0; v < vectors; ++v) {
          V w[2];  // the changes of the filter and of its slope
          splines_at(rows, v * lanes, w, first, second);
          if (along->table) {
            V more[2];
            splines_at(change, v * lanes, more, weight[0], weight[1]);
            w[0] += more[0], w[1] += more[1];
          }
          const V other = load<V>(neighbor + v * lanes);
          sum[v] += w[0] * other;
          V inner = load<V>(own + f + v * lanes) * w[1];
          if (own_change) {
            V slope;
            splines_at(rows, v * lanes, &slope, weight[1]);
            inner += load<V>(own_change + f + v * lanes) * slope;
          }
          part += inner * other;
        }
      }
      gd[e] += sum_of_lanes(part);
    }
    for (int v = 0; v < vectors; ++v) store<V>(gx + f + v * lanes, sum[v]);
  }
};

template <Isa isa, int degree, bool directed, typename T>
void value_rows(const Adjacency& graph, const SplineFilters<T>& filters, const T* x,
                const SplineDirection<T>* along, T* y, int threads) {
  constexpr int derivatives = directed ? 1 : 0;
  const int64_t features = filters.features;
  parallel_for(threads, graph.rows, [&](int64_t row) {
    T* sum = y + row * features;
    std::fill_n(sum, features, T(0));
    for_entries<degree, derivatives>(
        graph, row, filters, [](int64_t) {},
        [&](const auto* entries, int count) {
          for_tiles<isa, T, directed ? 4 : 8>(
              features, ValueTile<degree, directed, T>{filters, x, along, sum, entries, count});
        });
  });
}

template <Isa isa, int degree, bool directed, typename T>
void grad_rows(const Adjacency& graph, const SplineFilters<T>& filters, const T* x, const T* g,
               const SplineDirection<T>* along, const T* added, T* gx, T* gd, int threads) {
  constexpr int derivatives = directed ? 2 : 1;
  const int64_t features = filters.features;
  parallel_for(threads, graph.rows, [&](int64_t row) {
    T* sum = gx + row * features;
    std::fill_n(sum, features, T(0));
    const T* change = along && along->x ? along->x + row * features : nullptr;
    for_entries<degree, derivatives>(
        graph, row, filters, [&](int64_t edge) { gd[edge] = added ? added[edge] : T(0); },
        [&](const auto* entries, int count) {
          T part[chunk] = {};
          for_tiles<isa, T, grad_vectors>(
              features, GradTile<degree, directed, T>{filters, x + row * features, change, g, along,
                                                      sum, entries, count, part});
          for (int e = 0; e < count; ++e)
            gd[entries[e].edge] = added ? added[entries[e].edge] + part[e] : part[e];
        });
  });
}

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

// Calls function<degree, whether there is a direction>().
template <typename Function>
void with_kind(int degree, bool directed, Function&& function) {
  if (degree == 3)
    return directed ? function.template operator()<3, true>()
                    : function.template operator()<3, false>();
  return directed ? function.template operator()<5, true>()
                  : function.template operator()<5, false>();
}

}  // namespace

template <Isa isa, typename T>
void spline_value_cpu(const Adjacency& receivers, const SplineFilters<T>& filters, const T* x,
                      const SplineDirection<T>* direction, T* y, int threads) {
  with_kind(filters.degree, direction, [&]<int degree, bool directed>() {
    value_rows<isa, degree, directed>(receivers, filters, x, direction, y, threads);
  });
}

template <Isa isa, typename T>
void spline_grad_cpu(const Adjacency& senders, const SplineFilters<T>& filters, const T* x,
                     const T* g, const SplineDirection<T>* direction, const T* added, T* gx, T* gd,
                     int threads) {
  with_kind(filters.degree, direction, [&]<int degree, bool directed>() {
    grad_rows<isa, degree, directed>(senders, filters, x, g, direction, added, gx, gd, threads);
  });
}

template <Isa isa, typename T>
void spline_table_grad_cpu(const SplineBins& bins, const SplineFilters<T>& filters, const T* x,
                           const T* g, const SplineDirection<T>* direction, T* gc, T* workspace,
                           int threads) {
  with_kind(filters.degree, direction, [&]<int degree, bool directed>() {
    table_rows<isa, degree, directed>(bins, filters, x, g, direction, gc, workspace, threads);
  });
}

#define MOLKERN_INSTANTIATE(T)                                                                   \
  template void spline_value_cpu<Isa::MOLKERN_ISA, T>(                                           \
      const Adjacency&, const SplineFilters<T>&, const T*, const SplineDirection<T>*, T*, int);  \
  template void spline_grad_cpu<Isa::MOLKERN_ISA, T>(                                            \
      const Adjacency&, const SplineFilters<T>&, const T*, const T*, const SplineDirection<T>*,  \
      const T*, T*, T*, int);                                                                    \
  template void spline_table_grad_cpu<Isa::MOLKERN_ISA, T>(                                      \
      const SplineBins&, const SplineFilters<T>&, const T*, const T*, const SplineDirection<T>*, \
      T*, T*, int);
MOLKERN_INSTANTIATE(float)
MOLKERN_INSTANTIATE(double)

}  // namespace molkern
