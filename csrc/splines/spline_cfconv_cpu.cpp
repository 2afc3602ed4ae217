// Rows are worked on in tiles of features that stay in registers while the entries of a row go by;
// the weights of an entry are computed once for all its tiles.
//
// In a symmetric graph both directions of a pair have the same filter. Rows are taken in blocks,
// and a pair within one is computed once: by the row that comes first, which adds to the other one
// too. Entries of a row are in ascending order of their neighbors, so that each row's sum still
// runs in the order of its entries: below the block in a first pass, within the block below the row
// by the rows before it, the others by itself. Results are the same bits for any blocks, and as one
// row after the other.
#include <algorithm>

#include "common/parallel.h"
#include "splines/spline_cfconv.h"
#include "splines/tiles_cpu.h"

namespace molkern {
namespace {

constexpr int grad_vectors = 4;     // vectors of a tile: sums, filters and slopes fill 16 registers
constexpr int64_t most_rows = 256;  // of a block, whose sums should stay in the second cache

// Sums over features, one for each entry of a chunk, lane by lane until all tiles are done.
template <Isa isa, typename T>
struct LaneSums {
  static constexpr int lanes = vector_lanes<isa, T>;
  alignas(64) T value[chunk][lanes];

  explicit LaneSums(int count) { std::fill_n(value[0], count * lanes, T(0)); }

  T total(int e) const { return lane_sum(load<Vector<T, lanes>>(value[e])); }
};

// Adds a vector, or a number to the first lane.
template <typename V>
MOLKERN_INLINE void add_lanes(Scalar<V>* to, V x) {
  store<V>(to, load<V>(to) + x);
}

// An entry of a row: the other atom's features, the first coefficients, and the weights.
template <int degree, int derivatives, typename T>
struct Entry {
  int64_t neighbor;  // offset of its features
  int64_t edge;
  int64_t first;   // offset of the coefficients
  int64_t mirror;  // the reverse edge, where the other row is added to as well, or -1
  SplineWeights<degree, derivatives, T> weights;
};

template <int degree, int derivatives, typename T>
MOLKERN_INLINE void set_entry(Entry<degree, derivatives, T>& entry, const SplineFilters<T>& filters,
                              int64_t neighbor, int64_t edge, int64_t mirror) {
  const T d = filters.distances[edge];
  entry.neighbor = neighbor * filters.features;
  entry.edge = edge;
  entry.mirror = mirror;
  entry.weights =
      spline_weights<degree, derivatives>(filters.grid, d, spline_interval(filters.grid, d));
  entry.first = entry.weights.first * filters.features;
}

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
      if (spline_is_zero(filters.grid, filters.distances[edge])) {
        skip(edge);
        continue;
      }
      set_entry(entries[count++], filters, graph.neighbors[k], edge, -1);
    }
    if (count) use(entries, count);
  }
}

// The same for rows first ... end of a symmetric graph. `reverse` is its map of edges; entries
// whose mirror is set stand for their reverse too. use(row, entries, count) and skip(edge).
template <int degree, int derivatives, typename T, typename Skip, typename Use>
MOLKERN_INLINE void for_block(const Adjacency& graph, const int32_t* reverse, int64_t first,
                              int64_t end, const SplineFilters<T>& filters, Skip&& skip,
                              Use&& use) {
  Entry<degree, derivatives, T> entries[chunk];
  const auto is_zero = [&](int64_t edge) {
    return spline_is_zero(filters.grid, filters.distances[edge]);
  };
  const auto edge_of = [&](int64_t k) -> int64_t { return graph.edges ? reverse[k] : k; };
  const auto mirror_of = [&](int64_t k) -> int64_t { return graph.edges ? k : reverse[k]; };
  // The other side of some entries of one pair, images or of unequal lengths, in its row's order.
  const auto use_others = [&](int64_t row, int64_t other, int64_t k, int64_t last) {
    const bool ascends = reverse[k] <= reverse[last - 1];
    for (int64_t n = 0; n < last - k; ++n) {
      const int64_t edge = mirror_of(ascends ? k + n : last - 1 - n);
      if (is_zero(edge)) {
        skip(edge);
        continue;
      }
      Entry<degree, derivatives, T> entry;
      set_entry(entry, filters, row, edge, -1);
      use(other, &entry, 1);
    }
  };
  for (int pass = 0; pass < 2; ++pass) {
    if (pass == 0 && first == 0) continue;
    for (int64_t row = first; row < end; ++row) {
      const int64_t begin = graph.row_ptr[row], stop = graph.row_ptr[row + 1];
      int count = 0;
      for (int64_t k = begin; k < stop; ++k) {
        const int64_t other = graph.neighbors[k];
        if (pass == 0 ? other >= first : other < row) continue;
        const int64_t edge = edge_of(k);
        int64_t mirror = -1;
        if (other > row && other < end) {
          const bool before = k > begin && graph.neighbors[k - 1] == other;
          const bool after = k + 1 < stop && graph.neighbors[k + 1] == other;
          if (!before && !after && filters.distances[edge] == filters.distances[mirror_of(k)]) {
            mirror = mirror_of(k);
          } else if (!before) {
            int64_t last = k + 1;
            while (last < stop && graph.neighbors[last] == other) ++last;
            use_others(row, other, k, last);
          }
        }
        if (is_zero(edge)) {
          skip(edge);
          if (mirror >= 0) skip(mirror);
          continue;
        }
        set_entry(entries[count++], filters, other, edge, mirror);
        if (count == chunk) use(row, entries, count), count = 0;
      }
      if (count) use(row, entries, count);
    }
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
  // From zero on: of a sum of two products compilers fuse now the one, now the other
#pragma GCC unroll 2
  for (int n = 0; n < sums; ++n) result[n] = V{};
#pragma GCC unroll 6
  for (int k = 0; k <= degree; ++k) {
    const V c = load<V>(coefficients.row[k] + at);
#pragma GCC unroll 2
    for (int n = 0; n < sums; ++n) result[n] += splat<V>((*weight[n])[k]) * c;
  }
}

// Two sums for all vectors of a tile. The loop over k is outside: the weights of both would not
// stay in registers.
template <typename V, int vectors, int degree, typename T>
MOLKERN_INLINE void splines_of_tile(const Coefficients<degree, T>& coefficients,
                                    const T (&weight)[degree + 1], const T (&slope)[degree + 1],
                                    V (&w)[vectors], V (&s)[vectors]) {
  constexpr int lanes = sizeof(V) / sizeof(T);
  for (int v = 0; v < vectors; ++v) w[v] = s[v] = V{};
#pragma GCC unroll 6
  for (int k = 0; k <= degree; ++k) {
    const V b = splat<V>(weight[k]), b1 = splat<V>(slope[k]);
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      const V c = load<V>(coefficients.row[k] + v * lanes);
      w[v] += b * c;
      s[v] += b1 * c;
    }
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
  const T* own = nullptr;  // the row of x and all of y, for entries with a mirror
  T* all = nullptr;

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
        if (entry.mirror >= 0) {
          T* other = all + entry.neighbor + f;
#pragma GCC unroll 8
          for (int v = 0; v < vectors; ++v) {
            V w;
            splines_at(rows, v * lanes, &w, entry.weights.weight[0]);
            sum[v] += w * load<V>(neighbor + v * lanes);
            V back = load<V>(other + v * lanes);
            back += w * load<V>(own + f + v * lanes);
            store<V>(other + v * lanes, back);
          }
          continue;
        }
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
template <Isa isa, int degree, bool directed, typename T>
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
  LaneSums<isa, T>* gd;
  const T* own_g = nullptr;  // the row of g, all of x and of gx, for entries with a mirror
  const T* x = nullptr;
  T* all = nullptr;
  LaneSums<isa, T>* mirrored_gd = nullptr;

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
        V w[vectors], slope[vectors];
        splines_of_tile(rows, weight[0], weight[1], w, slope);
        if (entry.mirror >= 0) {
          T* other_gx = all + entry.neighbor + f;
          const T* other_x = x + entry.neighbor + f;
          V mirrored{};
#pragma GCC unroll 4
          for (int v = 0; v < vectors; ++v) {
            const V other = load<V>(neighbor + v * lanes);
            sum[v] += w[v] * other;
            part += slope[v] * (other * load<V>(own + f + v * lanes));
            const V mine = load<V>(own_g + f + v * lanes);
            V back = load<V>(other_gx + v * lanes);
            back += w[v] * mine;
            store<V>(other_gx + v * lanes, back);
            mirrored += slope[v] * (mine * load<V>(other_x + v * lanes));
          }
          add_lanes(gd->value[e], part);
          add_lanes(mirrored_gd->value[e], mirrored);
          continue;
        }
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
          const V other = load<V>(neighbor + v * lanes);
          sum[v] += w[v] * other;
          part += slope[v] * (other * load<V>(own + f + v * lanes));
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
      add_lanes(gd->value[e], part);
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

// Calls run(first, end) for blocks of rows, at least one for every thread.
template <typename Run>
void for_blocks(int64_t rows, int threads, Run&& run) {
  const int64_t size = std::clamp<int64_t>((rows + threads - 1) / threads, 1, most_rows);
  parallel_for(threads, (rows + size - 1) / size,
               [&](int64_t b) { run(b * size, std::min(rows, (b + 1) * size)); });
}

template <Isa isa, int degree, typename T>
void value_blocks(const Adjacency& graph, const int32_t* reverse, const SplineFilters<T>& filters,
                  const T* x, T* y, int threads) {
  const int64_t features = filters.features;
  for_blocks(graph.rows, threads, [&](int64_t first, int64_t end) {
    std::fill(y + first * features, y + end * features, T(0));
    for_block<degree, 0>(
        graph, reverse, first, end, filters, [](int64_t) {},
        [&](int64_t row, const auto* entries, int count) {
          const ValueTile<degree, false, T> tile{
              filters, x, nullptr, y + row * features, entries, count, x + row * features, y};
          for_tiles<isa, T, 8>(features, tile);
        });
  });
}

template <Isa isa, int degree, typename T>
void grad_blocks(const Adjacency& graph, const SplineFilters<T>& filters, const T* x, const T* g,
                 const T* added, T* gx, T* gd, int threads) {
  const int64_t features = filters.features;
  const auto set = [&](int64_t edge, T value) { gd[edge] = added ? added[edge] + value : value; };
  for_blocks(graph.rows, threads, [&](int64_t first, int64_t end) {
    std::fill(gx + first * features, gx + end * features, T(0));
    for_block<degree, 1>(
        graph, graph.edges, first, end, filters, [&](int64_t edge) { set(edge, T(0)); },
        [&](int64_t row, const auto* entries, int count) {
          LaneSums<isa, T> part(count), mirrored(count);
          const int64_t at = row * features;
          const GradTile<isa, degree, false, T> tile{filters, x + at,  nullptr,  g,     nullptr,
                                                     gx + at, entries, count,    &part, g + at,
                                                     x,       gx,      &mirrored};
          for_tiles<isa, T, grad_vectors>(features, tile);
          for (int e = 0; e < count; ++e) {
            set(entries[e].edge, part.total(e));
            if (entries[e].mirror >= 0) set(entries[e].mirror, mirrored.total(e));
          }
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
          LaneSums<isa, T> part(count);
          const GradTile<isa, degree, directed, T> tile{
              filters, x + row * features, change, g, along, sum, entries, count, &part};
          for_tiles<isa, T, grad_vectors>(features, tile);
          for (int e = 0; e < count; ++e)
            gd[entries[e].edge] = added ? added[entries[e].edge] + part.total(e) : part.total(e);
        });
  });
}

}  // namespace

template <Isa isa, typename T>
void spline_value_cpu(const Adjacency& receivers, const int32_t* reverse,
                      const SplineFilters<T>& filters, const T* x,
                      const SplineDirection<T>* direction, T* y, int threads) {
  with_kind(filters.degree, direction, [&]<int degree, bool directed>() {
    if (!directed && reverse)
      return value_blocks<isa, degree>(receivers, reverse, filters, x, y, threads);
    value_rows<isa, degree, directed>(receivers, filters, x, direction, y, threads);
  });
}

template <Isa isa, typename T>
void spline_grad_cpu(const Adjacency& senders, bool symmetric, const SplineFilters<T>& filters,
                     const T* x, const T* g, const SplineDirection<T>* direction, const T* added,
                     T* gx, T* gd, int threads) {
  with_kind(filters.degree, direction, [&]<int degree, bool directed>() {
    if (!directed && symmetric)
      return grad_blocks<isa, degree>(senders, filters, x, g, added, gx, gd, threads);
    grad_rows<isa, degree, directed>(senders, filters, x, g, direction, added, gx, gd, threads);
  });
}

#define MOLKERN_INSTANTIATE(T)                                                             \
  template void spline_value_cpu<Isa::MOLKERN_ISA, T>(const Adjacency&, const int32_t*,    \
                                                      const SplineFilters<T>&, const T*,   \
                                                      const SplineDirection<T>*, T*, int); \
  template void spline_grad_cpu<Isa::MOLKERN_ISA, T>(                                      \
      const Adjacency&, bool, const SplineFilters<T>&, const T*, const T*,                 \
      const SplineDirection<T>*, const T*, T*, T*, int);
MOLKERN_INSTANTIATE(float)
MOLKERN_INSTANTIATE(double)

}  // namespace molkern
