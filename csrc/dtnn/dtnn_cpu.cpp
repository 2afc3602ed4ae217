// The edges of a row are worked on in blocks. Their products p, a row of k each, are multiplied by
// W as the matrices that they are: tiles of some edges by two vectors of channels (or of factors,
// on the way back) stay in registers. With a direction the changes of a block's edges are further
// rows of the same matrices, so that one code serves gradients and products of the Hessian.
#include <algorithm>
#include <vector>

#include "common/parallel.h"
#include "common/vector.h"
#include "dense/activation_math.h"
#include "dtnn/dtnn.h"

namespace molkern {
namespace {

constexpr int block_rows = 24;  // of a block's matrices: edges, or edges and their changes

constexpr int64_t round_up(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

// The tile of one instruction set: sixteen vector registers hold 6 x 2 sums, two vectors of the
// right factor and a number of the left one; thirty-two hold 12 x 2.
template <Isa isa, typename T>
struct Tile {
  static constexpr int lanes = vector_lanes<isa, T>;
  using V = Vector<T, lanes>;
  static constexpr int rows = isa == Isa::avx512 ? 12 : 6;
  static constexpr int columns = 2 * lanes;
};

// Zeroed numbers that begin at a cache line.
template <typename T>
class Numbers {
  std::vector<T> memory_;
  T* data_;

 public:
  explicit Numbers(int64_t count) : memory_(count + 64 / sizeof(T)) {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    data_ = memory_.data() + (64 - address % 64) % 64 / sizeof(T);
  }
  Numbers(const Numbers&) = delete;
  T* data() const { return data_; }
};

// Calls run.operator()<V>(first) for vectors that cover 0 ... count. The last one overlaps the one
// before; fewer numbers than a vector has come one by one. For what may be done twice.
template <typename V, typename Run>
MOLKERN_INLINE void for_vectors(int64_t count, Run&& run) {
  constexpr int64_t lanes = sizeof(V) / sizeof(Scalar<V>);
  if (count < lanes) {
    for (int64_t k = 0; k < count; ++k) run.template operator()<Scalar<V>>(k);
    return;
  }
  int64_t k = 0;
  for (; k + lanes <= count; k += lanes) run.template operator()<V>(k);
  if (k < count) run.template operator()<V>(count - lanes);
}

// The left factor of a product: number (r, k) is data[r * stride + k], or transposed.
template <bool transposed, typename T>
struct Left {
  const T* data;
  int64_t stride;

  MOLKERN_INLINE const T* at(int64_t r, int64_t k) const {
    return transposed ? data + k * stride + r : data + r * stride + k;
  }
};

// c[r, columns of some vectors] = (or +=) sum over k of a[r, k] b[k, those columns]; depth is at
// least one, which saves compilers a second copy of the sums.
template <typename V, int rows, int vectors, bool transposed, typename T = Scalar<V>>
__attribute__((noinline)) void multiply_tile(Left<transposed, T> a, const T* b, int64_t b_stride,
                                             int64_t depth, bool add, T* c, int64_t c_stride) {
  constexpr int lanes = sizeof(V) / sizeof(T);
  V sum[rows][vectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) sum[r][v] = add ? load<V>(c + r * c_stride + v * lanes) : V{};
  int64_t k = 0;
  do {
    V right[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) right[v] = load<V>(b + k * b_stride + v * lanes);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const V left = splat<V>(*a.at(r, k));
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sum[r][v] += left * right[v];
    }
  } while (++k < depth);
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) store<V>(c + r * c_stride + v * lanes, sum[r][v]);
}

// The tile of so many rows, at most `most`.
template <typename V, int most, int vectors, typename... Arguments>
MOLKERN_INLINE void multiply_some(int64_t rows, Arguments... arguments) {
  if constexpr (most > 1)
    if (rows < most) return multiply_some<V, most - 1, vectors>(rows, arguments...);
  multiply_tile<V, most, vectors>(arguments...);
}

// One or two vectors of columns of any number of rows, which are dealt evenly to tiles.
template <typename Tile, bool transposed, typename T>
void multiply_columns(bool two, int64_t rows, Left<transposed, T> a, const T* b, int64_t b_stride,
                      int64_t depth, bool add, T* c, int64_t c_stride) {
  using V = typename Tile::V;
  const int64_t tiles = (rows + Tile::rows - 1) / Tile::rows;
  for (int64_t t = 0, first = 0; t < tiles; ++t) {
    const int64_t count = (rows - first + tiles - t - 1) / (tiles - t);
    const Left<transposed, T> part{a.at(first, 0), a.stride};
    T* to = c + first * c_stride;
    if (two)
      multiply_some<V, Tile::rows, 2>(count, part, b, b_stride, depth, add, to, c_stride);
    else
      multiply_some<V, Tile::rows, 1>(count, part, b, b_stride, depth, add, to, c_stride);
    first += count;
  }
}

// A right factor [depth, columns] in panels [depth][Tile::columns], padded with zeros.
template <typename Tile, typename T>
class Panels {
  int64_t depth_, columns_;
  Numbers<T> data_;

 public:
  // From numbers (k, n) at from[k * by_k + n * by_n]; none where from is null.
  Panels(const T* from, int64_t depth, int64_t columns, int64_t by_k, int64_t by_n)
      : depth_(depth),
        columns_(columns),
        data_(from ? round_up(columns, Tile::columns) * depth : 0) {
    if (!from) return;
    T* to = data_.data();
    for (int64_t first = 0; first < columns; first += Tile::columns) {
      const int64_t used = std::min<int64_t>(Tile::columns, columns - first);
      for (int64_t k = 0; k < depth; ++k, to += Tile::columns)
        for (int64_t n = 0; n < used; ++n) to[n] = from[k * by_k + (first + n) * by_n];
    }
  }

  // Rows of c, whose stride holds whole vectors.
  void multiply(int64_t rows, const T* a, int64_t a_stride, bool add, T* c,
                int64_t c_stride) const {
    for (int64_t first = 0; first < columns_; first += Tile::columns)
      multiply_columns<Tile>(columns_ - first > Tile::lanes, rows, Left<false, T>{a, a_stride},
                             data_.data() + first * depth_, Tile::columns, depth_, add, c + first,
                             c_stride);
  }
};

// W and a direction's change of it, for both ways.
template <typename Tile, typename T>
struct Weights {
  Panels<Tile, T> to_channels, to_channels_change, to_factors, to_factors_change;
  bool changes;

  Weights(const DtnnInputs<T>& in, const DtnnDirection<T>* along, bool back)
      : Weights(in.weight, along ? along->weight : nullptr, in.channels, in.filters.features,
                back) {}

  Weights(const T* w, const T* h, int64_t channels, int64_t factors, bool back)
      : to_channels(w, factors, channels, 1, factors),
        to_channels_change(h, factors, channels, 1, factors),
        to_factors(back ? w : nullptr, channels, factors, factors, 1),
        to_factors_change(back ? h : nullptr, channels, factors, factors, 1),
        changes(h) {}
};

template <int degree, int derivatives, typename T>
struct Entry {
  int64_t neighbor, edge;
  SplineWeights<degree, derivatives, T> spline;
};

// What a kernel is: its degree, whether it has a direction, and whether it goes back.
template <Isa isa_, int degree_, bool directed_, bool back_, typename T_>
struct Kind {
  using T = T_;
  using Tile = molkern::Tile<isa_, T>;
  using V = typename Tile::V;
  static constexpr int degree = degree_;
  static constexpr bool directed = directed_, back = back_;
  static constexpr int edges = directed ? block_rows / 2 : block_rows;
  using Entry = molkern::Entry<degree, directed + back, T>;
};

// Calls use(entries, count) for the entries of a row that are not zero, a block at a time.
template <typename Kind, typename T, typename Skip, typename Use>
MOLKERN_INLINE void for_entries(const Adjacency& graph, int64_t row,
                                const SplineFilters<T>& filters, Skip&& skip, Use&& use) {
  typename Kind::Entry entries[Kind::edges];
  const int64_t end = graph.row_ptr[row + 1];
  for (int64_t k = graph.row_ptr[row]; k < end;) {
    int count = 0;
    for (; k < end && count < Kind::edges; ++k) {
      const int64_t edge = graph.edge(k);
      const T d = filters.distances[edge];
      if (spline_is_zero(filters.grid, d)) {
        skip(edge);
        continue;
      }
      auto& entry = entries[count++];
      entry.neighbor = graph.neighbors[k];
      entry.edge = edge;
      entry.spline = spline_weights<Kind::degree, Kind::directed + Kind::back>(
          filters.grid, d, spline_interval(filters.grid, d));
    }
    if (count) use(static_cast<const typename Kind::Entry*>(entries), count);
  }
}

// sum over k of weight[k] times the coefficients in row k, for each of the weights.
template <typename V, int degree, typename T, typename... Given>
MOLKERN_INLINE void splines_at(const T* rows, int64_t stride, V* result, const Given&... weights) {
  const T(*weight[])[degree + 1] = {&weights...};
  constexpr int sums = sizeof...(weights);
  const V first = load<V>(rows);
#pragma GCC unroll 3
  for (int n = 0; n < sums; ++n) result[n] = splat<V>((*weight[n])[0]) * first;
#pragma GCC unroll 6
  for (int k = 1; k <= degree; ++k) {
    const V c = load<V>(rows + k * stride);
#pragma GCC unroll 3
    for (int n = 0; n < sums; ++n) result[n] += splat<V>((*weight[n])[k]) * c;
  }
}

// The matrices of a block of edges. Where there is a direction, the changes of all edges follow
// their numbers; in u and q it is the other way around, for the sums u~ p + u p~ of gW.
template <typename Kind>
struct Block {
  using T = typename Kind::T;
  using V = typename Kind::V;
  static constexpr int degree = Kind::degree;
  static constexpr bool directed = Kind::directed, back = Kind::back;

  const DtnnInputs<T>& in;
  const DtnnDirection<T>* along;
  const int64_t factors, channels, factor_row, channel_row;  // the rows are whole vectors
  Numbers<T> memory;
  T *p, *z;                // [rows, factor_row], [rows, channel_row]
  T *u, *q;                // as these
  T *filter, *x_slope;     // f and x f', with the changes v and hx f' + x v' after them
  T *sum, *own, *changed;  // one row: of results, of x and of hx

  Block(const DtnnInputs<T>& in, const DtnnDirection<T>* along)
      : in(in),
        along(along),
        factors(in.filters.features),
        channels(in.channels),
        factor_row(round_up(factors, Kind::Tile::lanes)),
        channel_row(round_up(channels, Kind::Tile::lanes)),
        memory(block_rows * (4 * factor_row + 2 * channel_row) + 3 * (factor_row + channel_row)) {
    T* next = memory.data();
    const auto take = [&](int64_t count) { return (next += count) - count; };
    p = take(block_rows * factor_row);
    q = take(block_rows * factor_row);
    filter = take(block_rows * factor_row);
    x_slope = take(block_rows * factor_row);
    z = take(block_rows * channel_row);
    u = take(block_rows * channel_row);
    sum = take(std::max(factor_row, channel_row));
    own = take(factor_row);
    changed = take(factor_row);
  }

  // The row of x that the block's edges share, and a direction's.
  void fetch_own(int64_t row) {
    std::copy_n(in.x + row * factors, factors, own);
    if (directed && along->x) std::copy_n(along->x + row * factors, factors, changed);
  }

  // p of an edge whose sender's features are at x, changed by hx (or null).
  MOLKERN_INLINE void fetch(const typename Kind::Entry& entry, int e, int count, const T* x,
                            const T* hx) {
    const auto& weight = entry.spline.weight;
    const int64_t first = entry.spline.first * factors, row = e * factor_row;
    // Copies: what is stored below could be any member.
    const T* const table = in.filters.table + first;
    const T* const table_change = directed && along->table ? along->table + first : nullptr;
    T *const to_p = p + row, *const to_filter = filter + row, *const to_slope = x_slope + row;
    const int64_t stride = factors, change = count * factor_row;
    const T h = directed && along->distances ? along->distances[entry.edge] : T(0);
    T turned[2][degree + 1];  // the weights' changes, and those of their slopes
    if constexpr (directed)
      for (int n = 0; n <= back; ++n)
        for (int k = 0; k <= degree; ++k) turned[n][k] = weight[n + 1][k] * h;
    for_vectors<V>(stride, [&]<typename U>(int64_t k) __attribute__((always_inline)) {
      const U value = load<U>(x + k);
      U f[2], v[2];  // value and slope, and their changes
      if constexpr (!directed && !back) {
        splines_at<U, degree>(table + k, stride, f, weight[0]);
      } else if constexpr (!directed) {
        splines_at<U, degree>(table + k, stride, f, weight[0], weight[1]);
      } else if constexpr (!back) {
        U all[2];
        splines_at<U, degree>(table + k, stride, all, weight[0], turned[0]);
        f[0] = all[0], v[0] = all[1];
      } else {
        splines_at<U, degree>(table + k, stride, f, weight[0], weight[1]);
        splines_at<U, degree>(table + k, stride, v, turned[0], turned[1]);
      }
      store<U>(to_p + k, value * f[0]);
      if constexpr (back) {
        store<U>(to_filter + k, f[0]);
        store<U>(to_slope + k, value * f[1]);
      }
      if constexpr (directed) {
        if (table_change) {
          U more[2];
          if constexpr (back)
            splines_at<U, degree>(table_change + k, stride, more, weight[0], weight[1]);
          else
            splines_at<U, degree>(table_change + k, stride, more, weight[0]);
          v[0] += more[0];
          if constexpr (back) v[1] += more[1];
        }
        U changed_p = value * v[0], changed_slope;
        if constexpr (back) changed_slope = value * v[1];
        if (hx) {
          const U h = load<U>(hx + k);
          changed_p += h * f[0];
          if constexpr (back) changed_slope += h * f[1];
        }
        store<U>(to_p + change + k, changed_p);
        if constexpr (back) {
          store<U>(to_filter + change + k, v[0]);
          store<U>(to_slope + change + k, changed_slope);
        }
      }
    });
  }

  // z from p.
  void to_channels(const Weights<typename Kind::Tile, T>& w, int count) {
    const int rows = directed ? 2 * count : count;
    w.to_channels.multiply(rows, p, factor_row, false, z, channel_row);
    if (directed && w.changes)
      w.to_channels_change.multiply(count, p, factor_row, true, z + count * channel_row,
                                    channel_row);
  }

  // Adds the block's messages, or their changes, to the row of sums.
  void add_messages(int count) {
    constexpr int lanes = Kind::Tile::lanes;
    for (int64_t c = 0; c < channel_row; c += lanes) {
      V total = load<V>(sum + c);
      for (int e = 0; e < count; ++e) {
        const T* at = z + e * channel_row + c;
        const ValueSlope<V> m = hyperbolic_tangent(load<V>(at));
        if constexpr (directed)
          total += m.slope * load<V>(at + count * channel_row);
        else
          total += m.value;
      }
      store<V>(sum + c, total);
    }
  }

  // u from z, then q.
  void to_factors(const Weights<typename Kind::Tile, T>& w, const typename Kind::Entry* entries,
                  int count, const T* g) {
    T* const now = directed ? u + count * channel_row : u;
    const int64_t changes = count * channel_row;
    for (int e = 0; e < count; ++e) {
      const T* const cotangent = g + entries[e].neighbor * channels;
      const T* const from = z + e * channel_row;
      T *const to_now = now + e * channel_row, *const to_change = u + e * channel_row;
      for_vectors<V>(channels, [&]<typename U>(int64_t c) __attribute__((always_inline)) {
        const ValueSlope<U> m = hyperbolic_tangent(load<U>(from + c));
        const U back_now = load<U>(cotangent + c) * m.slope;
        store<U>(to_now + c, back_now);
        if constexpr (directed)
          store<U>(to_change + c, T(-2) * (m.value * load<U>(from + changes + c)) * back_now);
      });
    }
    const int rows = directed ? 2 * count : count;
    w.to_factors.multiply(rows, u, channel_row, false, q, factor_row);
    if (directed && w.changes)
      w.to_factors_change.multiply(count, now, channel_row, true, q, factor_row);
  }

  // Adds q's part to gx, whose row is `sum`, and to gC, and gives gd of an edge.
  MOLKERN_INLINE T finish(const typename Kind::Entry& entry, int e, int count, T* gc,
                          int64_t gc_row) {
    constexpr int lanes = Kind::Tile::lanes;
    const int64_t row = e * factor_row;
    const auto& weight = entry.spline.weight;
    T turned[degree + 1];
    if constexpr (directed) {
      const T h = along->distances ? along->distances[entry.edge] : T(0);
      for (int t = 0; t <= degree; ++t) turned[t] = weight[1][t] * h;
    }
    const T *const from_q = q + row, *const from_filter = filter + row;
    const T *const from_slope = x_slope + row, *const x = own, *const hx = changed;
    T* const gx = sum;
    T* const to = gc ? gc + entry.spline.first * gc_row : nullptr;
    const int64_t end = factor_row, change = count * factor_row;
    V by_distance{};
    for (int64_t k = 0; k < end; k += lanes) {
      const V back_now = load<V>(from_q + k);  // with a direction, the change of q
      V by_x = back_now * load<V>(from_filter + k);
      by_distance += back_now * load<V>(from_slope + k);
      V by_filter = back_now * load<V>(x + k), steep{};
      if constexpr (directed) {
        const V unchanged = load<V>(from_q + change + k);
        by_x += unchanged * load<V>(from_filter + change + k);
        by_distance += unchanged * load<V>(from_slope + change + k);
        steep = unchanged * load<V>(x + k);
        by_filter += unchanged * load<V>(hx + k);
      }
      store<V>(gx + k, load<V>(gx + k) + by_x);
      if (to) {
#pragma GCC unroll 6
        for (int t = 0; t <= degree; ++t) {
          V total = load<V>(to + t * gc_row + k) + splat<V>(weight[0][t]) * by_filter;
          if constexpr (directed) total += splat<V>(turned[t]) * steep;
          store<V>(to + t * gc_row + k, total);
        }
      }
    }
    return lane_sum(by_distance);
  }

  // gW += u^T p, whose rows have the stride of gC.
  void add_weights(int count, T* gw, int64_t gw_row) {
    const int rows = directed ? 2 * count : count;
    for (int64_t first = 0; first < factors; first += Kind::Tile::columns)
      multiply_columns<typename Kind::Tile>(factors - first > Kind::Tile::lanes, channels,
                                            Left<true, T>{u, channel_row}, p + first, factor_row,
                                            rows, true, gw + first, gw_row);
  }
};

// Calls run(first row, last row) for a share of the rows per thread.
template <typename Run>
void for_shares(int threads, int64_t rows, Run&& run) {
  const int64_t shares = std::min<int64_t>(threads, rows);
  parallel_for(threads, shares,
               [&](int64_t s) { run(rows * s / shares, rows * (s + 1) / shares); });
}

template <typename Kind, typename T>
void value_rows(const Adjacency& graph, const DtnnInputs<T>& in, const DtnnDirection<T>* along,
                T* y, int threads) {
  const Weights<typename Kind::Tile, T> weights(in, along, false);
  const int64_t factors = in.filters.features;
  for_shares(threads, graph.rows, [&](int64_t first, int64_t last) {
    Block<Kind> block(in, along);
    for (int64_t row = first; row < last; ++row) {
      std::fill_n(block.sum, block.channel_row, T(0));
      for_entries<Kind>(
          graph, row, in.filters, [](int64_t) {},
          [&](const typename Kind::Entry* entries, int count) {
            for (int e = 0; e < count; ++e) {
              const int64_t from = entries[e].neighbor * factors;
              block.fetch(entries[e], e, count, in.x + from,
                          along && along->x ? along->x + from : nullptr);
            }
            block.to_channels(weights, count);
            block.add_messages(count);
          });
      std::copy_n(block.sum, in.channels, y + row * in.channels);
    }
  });
}

// Rows first ... last; gc and gw are the parts of these rows, or null.
template <typename Kind, typename T>
void grad_share(const Adjacency& graph, const DtnnInputs<T>& in,
                const Weights<typename Kind::Tile, T>& weights, const T* g,
                const DtnnDirection<T>* along, const T* added, const DtnnGradients<T>& out, T* gc,
                T* gw, int64_t first, int64_t last) {
  const int64_t factors = in.filters.features, part_row = dtnn_padded(factors);
  Block<Kind> block(in, along);
  for (int64_t row = first; row < last; ++row) {
    block.fetch_own(row);
    std::fill_n(block.sum, block.factor_row, T(0));
    for_entries<Kind>(
        graph, row, in.filters,
        [&](int64_t edge) { out.distances[edge] = added ? added[edge] : T(0); },
        [&](const typename Kind::Entry* entries, int count) {
          for (int e = 0; e < count; ++e)
            block.fetch(entries[e], e, count, block.own,
                        along && along->x ? block.changed : nullptr);
          block.to_channels(weights, count);
          block.to_factors(weights, entries, count, g);
          for (int e = 0; e < count; ++e) {
            const T gd = block.finish(entries[e], e, count, gc, part_row);
            const int64_t edge = entries[e].edge;
            out.distances[edge] = added ? added[edge] + gd : gd;
          }
          if (gw) block.add_weights(count, gw, part_row);
        });
    std::copy_n(block.sum, factors, out.x + row * factors);
  }
}

template <typename Kind, typename T>
void grad_rows(const Adjacency& graph, const DtnnInputs<T>& in, const T* g,
               const DtnnDirection<T>* along, const T* added, const DtnnGradients<T>& out, T* parts,
               int64_t blocks, int threads) {
  const Weights<typename Kind::Tile, T> weights(in, along, true);
  const int64_t rows = graph.rows, factors = in.filters.features;
  if (!out.table && !out.weight) {
    for_shares(threads, rows, [&](int64_t first, int64_t last) {
      grad_share<Kind>(graph, in, weights, g, along, added, out, static_cast<T*>(nullptr),
                       static_cast<T*>(nullptr), first, last);
    });
    return;
  }
  const int64_t table_rows = in.filters.grid.intervals + Kind::degree;
  const int64_t gc_rows = out.table ? table_rows : 0, gw_rows = out.weight ? in.channels : 0;
  const int64_t part_row = dtnn_padded(factors), part = (gc_rows + gw_rows) * part_row;
  parallel_for(threads, blocks, [&](int64_t b) {
    T* gc = parts + b * part;
    std::fill_n(gc, part, T(0));
    grad_share<Kind>(graph, in, weights, g, along, added, out, out.table ? gc : nullptr,
                     out.weight ? gc + gc_rows * part_row : nullptr, rows * b / blocks,
                     rows * (b + 1) / blocks);
  });
  parallel_for(threads, gc_rows + gw_rows, [&](int64_t row) {
    T* sum = row < gc_rows ? out.table + row * factors : out.weight + (row - gc_rows) * factors;
    std::copy_n(parts + row * part_row, factors, sum);
    for (int64_t b = 1; b < blocks; ++b) {
      const T* from = parts + b * part + row * part_row;
      for (int64_t k = 0; k < factors; ++k) sum[k] += from[k];
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
void dtnn_value_cpu(const Adjacency& receivers, const DtnnInputs<T>& in,
                    const DtnnDirection<T>* direction, T* y, int threads) {
  with_kind(in.filters.degree, direction, [&]<int degree, bool directed>() {
    value_rows<Kind<isa, degree, directed, false, T>>(receivers, in, direction, y, threads);
  });
}

template <Isa isa, typename T>
void dtnn_grad_cpu(const Adjacency& senders, const DtnnInputs<T>& in, const T* g,
                   const DtnnDirection<T>* direction, const T* added,
                   const DtnnGradients<T>& gradients, T* parts, int64_t blocks, int threads) {
  with_kind(in.filters.degree, direction, [&]<int degree, bool directed>() {
    grad_rows<Kind<isa, degree, directed, true, T>>(senders, in, g, direction, added, gradients,
                                                    parts, blocks, threads);
  });
}

#define MOLKERN_INSTANTIATE(T)                                                                  \
  template void dtnn_value_cpu<Isa::MOLKERN_ISA, T>(const Adjacency&, const DtnnInputs<T>&,     \
                                                    const DtnnDirection<T>*, T*, int);          \
  template void dtnn_grad_cpu<Isa::MOLKERN_ISA, T>(const Adjacency&, const DtnnInputs<T>&,      \
                                                   const T*, const DtnnDirection<T>*, const T*, \
                                                   const DtnnGradients<T>&, T*, int64_t, int);
MOLKERN_INSTANTIATE(float)
MOLKERN_INSTANTIATE(double)

}  // namespace molkern
