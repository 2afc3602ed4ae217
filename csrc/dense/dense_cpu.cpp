// A blocked matrix product. The weights are laid out in panels of as many columns as a tile has
// (a few vectors), column numbers of one k side by side, the bias before the first k. A tile of the
// output, some rows by one panel, stays in registers while it runs over k. Rows are worked on in
// chunks that the first caches hold: a panel is read once for all rows of a chunk. Long sums are
// taken in blocks of k, continued from the output. When the numbers of a chunk are complete, the
// activation goes over them while they are still in cache.
#include <algorithm>
#include <memory>

#include "common/parallel.h"
#include "common/vector_math.h"
#include "dense/activation_math.h"
#include "dense/dense.h"

namespace molkern {
namespace {

constexpr int64_t round_up(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

constexpr int64_t chunk_rows = 48;
constexpr int64_t block_depth = 256;

// The tile of one instruction set: sixteen vector registers hold 6 x 2 sums, two vectors of a panel
// and a number of x; thirty-two hold 12 x 2.
template <Isa isa, typename T>
struct Tile {
  static constexpr int lanes = vector_lanes<isa, T>;
  using V = Vector<T, lanes>;
  static constexpr int rows = isa == Isa::avx512 ? 12 : 6;
  static constexpr int vectors = 2;
  static constexpr int columns = vectors * lanes;
};

// The number in every lane: subtracting zero changes none, so that compilers leave it out.
template <typename V>
MOLKERN_INLINE V broadcast(Scalar<V> x) {
  return x - V{};
}

// Sums of a tile, [rows][columns], over `depth` values of k.
//   a  the first row of the left factor, others `a_stride` numbers apart; `ahead` asks for the
//      rows of the next tile
//   b  a panel [depth][columns]
//   c  the tile in the output; sums start from it, or from `start` [columns] if that is not null
template <typename Tile, int rows, int vectors, typename V = typename Tile::V>
void multiply(const Scalar<V>* a, int64_t a_stride, bool ahead, const Scalar<V>* b, int64_t depth,
              const Scalar<V>* start, Scalar<V>* c, int64_t c_stride, int64_t columns) {
  using T = Scalar<V>;
  constexpr int lanes = Tile::lanes;
  const bool whole = columns >= vectors * lanes;
  const T* row[rows];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) row[r] = a + r * a_stride;
  V sum[rows][vectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      if (start) {
        sum[r][v] = load<V>(start + v * lanes);
      } else if (whole) {
        sum[r][v] = load<V>(c + r * c_stride + v * lanes);
      } else {
        V part{};
        const int64_t left = std::clamp<int64_t>(columns - v * lanes, 0, lanes);
        __builtin_memcpy(&part, c + r * c_stride + v * lanes, left * sizeof(T));
        sum[r][v] = part;
      }
    }
  const auto add = [&](int64_t k) __attribute__((always_inline)) {
    V panel[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) panel[v] = load<V>(b + k * Tile::columns + v * lanes);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const V x = broadcast<V>(row[r][k]);
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sum[r][v] += x * panel[v];
    }
  };
  constexpr int64_t line = 64 / sizeof(T);
  int64_t k = 0;
  for (; k + line <= depth; k += line) {
    if (ahead)
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) __builtin_prefetch(row[r] + rows * a_stride + k);
    for (int64_t i = k; i < k + line; ++i) add(i);
  }
  for (; k < depth; ++k) add(k);
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      if (whole) {
        store<V>(c + r * c_stride + v * lanes, sum[r][v]);
      } else {
        const V part = sum[r][v];
        const int64_t left = std::clamp<int64_t>(columns - v * lanes, 0, lanes);
        __builtin_memcpy(c + r * c_stride + v * lanes, &part, left * sizeof(T));
      }
    }
}

// The tile of the last rows, fewer than a whole one has.
template <typename Tile, int vectors, int most, typename... Arguments>
void multiply_rest(int64_t rows, Arguments... arguments) {
  if constexpr (most > 0) {
    if (rows == most)
      multiply<Tile, most, vectors>(arguments...);
    else
      multiply_rest<Tile, vectors, most - 1>(rows, arguments...);
  }
}

template <typename Tile, int vectors, typename T>
void multiply_panel(int64_t rows, const T* a, int64_t a_stride, bool ahead, const T* b,
                    int64_t depth, const T* start, T* c, int64_t c_stride, int64_t columns) {
  int64_t r = 0;
  for (; r + Tile::rows <= rows; r += Tile::rows)
    multiply<Tile, Tile::rows, vectors>(a + r * a_stride, a_stride, ahead, b, depth, start,
                                        c + r * c_stride, c_stride, columns);
  multiply_rest<Tile, vectors, Tile::rows - 1>(rows - r, a + r * a_stride, a_stride, false, b,
                                               depth, start, c + r * c_stride, c_stride, columns);
}

// The right factor in panels, [N / columns][1 + K][columns]; the first row is the bias or zero.
template <typename Tile, typename T>
class Panels {
 public:
  Panels(T* workspace, const DenseShape& shape)
      : data_(workspace), depth_(shape.depth), columns_(shape.columns) {}

  // From w [K, N].
  void pack(const T* w, int threads) {
    parallel_for(threads, count(), [&](int64_t p) {
      const int64_t used = std::min<int64_t>(Tile::columns, columns_ - p * Tile::columns);
      T* to = data_ + p * size();
      std::fill_n(to, Tile::columns, T(0));
      for (int64_t k = 0; k < depth_; ++k) {
        to += Tile::columns;
        const T* from = w + k * columns_ + p * Tile::columns;
        if (used == Tile::columns)
          __builtin_memcpy(to, from, Tile::columns * sizeof(T));
        else
          std::fill(std::copy_n(from, used, to), to + Tile::columns, T(0));
      }
    });
  }

  // From w [N, K], with the bias [N] or null.
  void pack_transposed(const T* w, const T* bias, int threads) {
    parallel_for(threads, count(), [&](int64_t p) {
      T* to = data_ + p * size();
      for (int64_t first = 0; first < Tile::columns; first += block) {
        const int64_t n = p * Tile::columns + first;
        for (int64_t i = 0; i < block; ++i)
          to[first + i] = bias && n + i < columns_ ? bias[n + i] : T(0);
        transpose(w + n * depth_, std::clamp<int64_t>(columns_ - n, 0, block),
                  to + Tile::columns + first);
      }
    });
  }

  // Rows of the output, from `rows` rows of the left factor at k = first ... first + count - 1.
  // Looking ahead pays where rows lie side by side, and only for the first panel: the others find
  // them in cache. Rows a multiple of a page apart would push each other out.
  void multiply(int64_t rows, const T* a, int64_t a_stride, bool ahead, int64_t first,
                int64_t count_k, T* c) const {
    for (int64_t p = 0; p < count(); ++p) {
      const T* panel = data_ + p * size();
      const T* b = panel + (1 + first) * Tile::columns;
      const T* start = first == 0 ? panel : nullptr;
      const int64_t columns = columns_ - p * Tile::columns;
      T* to = c + p * Tile::columns;
      if (columns > Tile::lanes)
        multiply_panel<Tile, 2>(rows, a, a_stride, ahead && p == 0, b, count_k, start, to, columns_,
                                columns);
      else
        multiply_panel<Tile, 1>(rows, a, a_stride, ahead && p == 0, b, count_k, start, to, columns_,
                                columns);
    }
  }

 private:
  static constexpr int block = 16 / sizeof(T);

  int64_t count() const { return (columns_ + Tile::columns - 1) / Tile::columns; }
  int64_t size() const { return (1 + depth_) * Tile::columns; }

  // `rows` rows of w, at most a block, to columns of a panel; zeros beyond.
  void transpose(const T* w, int64_t rows, T* to) const {
    using Block = Vector<T, block>;
    int64_t k = 0;
    for (; rows == block && k + block <= depth_; k += block) {
      const T* from = w + k;
      if constexpr (block == 4) {
        const Block w0 = load<Block>(from), w1 = load<Block>(from + depth_);
        const Block w2 = load<Block>(from + 2 * depth_), w3 = load<Block>(from + 3 * depth_);
        const Block low = __builtin_shufflevector(w0, w1, 0, 4, 1, 5);
        const Block high = __builtin_shufflevector(w0, w1, 2, 6, 3, 7);
        const Block next_low = __builtin_shufflevector(w2, w3, 0, 4, 1, 5);
        const Block next_high = __builtin_shufflevector(w2, w3, 2, 6, 3, 7);
        T* column = to + k * Tile::columns;
        store<Block>(column, __builtin_shufflevector(low, next_low, 0, 1, 4, 5));
        column += Tile::columns;
        store<Block>(column, __builtin_shufflevector(low, next_low, 2, 3, 6, 7));
        column += Tile::columns;
        store<Block>(column, __builtin_shufflevector(high, next_high, 0, 1, 4, 5));
        column += Tile::columns;
        store<Block>(column, __builtin_shufflevector(high, next_high, 2, 3, 6, 7));
      } else {
        const Block w0 = load<Block>(from), w1 = load<Block>(from + depth_);
        store<Block>(to + k * Tile::columns, __builtin_shufflevector(w0, w1, 0, 2));
        store<Block>(to + (k + 1) * Tile::columns, __builtin_shufflevector(w0, w1, 1, 3));
      }
    }
    for (; k < depth_; ++k)
      for (int64_t i = 0; i < block; ++i)
        to[k * Tile::columns + i] = i < rows ? w[i * depth_ + k] : T(0);
  }

  T* data_;
  int64_t depth_, columns_;
};

// Calls run(first row, rows) for every chunk. So many rows that every thread has some.
template <typename Run>
void for_chunks(int64_t rows, int64_t multiple, int threads, Run&& run) {
  const int64_t share = round_up((rows + threads - 1) / threads, multiple);
  const int64_t size = std::clamp<int64_t>(share, 1, chunk_rows);
  parallel_for(threads, (rows + size - 1) / size,
               [&](int64_t i) { run(i * size, std::min(size, rows - i * size)); });
}

// Calls run(first k, count) for blocks of about the same size; once without k, for the bias.
template <typename Run>
void for_blocks(int64_t depth, Run&& run) {
  const int64_t blocks = std::max<int64_t>(1, (depth + block_depth - 1) / block_depth);
  const int64_t size = (depth + blocks - 1) / blocks;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = std::min(b * size, depth);
    run(first, std::min(size, depth - first));
  }
}

// Rows of the output, from as many of the left factor [rows, depth].
template <typename Tile, typename T>
void multiply_rows(const Panels<Tile, T>& panels, const T* a, int64_t rows, int64_t depth, T* c) {
  for_blocks(depth, [&](int64_t k, int64_t count) {
    panels.multiply(rows, a + k, depth, depth <= block_depth, k, count, c);
  });
}

// What the rows of a chunk are finished with; all but y may be null.
template <typename T>
struct Rows {
  T *y, *slope, *value;
  const T *residual, *gate;
};

// y = residual + a(y) * gate, slope = a'(y) * gate and value = a(y) for whole vectors. Every number
// comes from the same instructions, wherever it lies.
template <Activation activation, bool gated, typename V, typename T = Scalar<V>>
MOLKERN_COMPILED_ONCE void finish_vectors(Rows<T> rows, int64_t count) {
  constexpr int lanes = sizeof(V) / sizeof(T);
  for (int64_t i = 0; i < count; i += lanes) {
    ValueSlope<V> result = activate<activation>(load<V>(rows.y + i));
    if constexpr (gated) {
      const V gate = load<V>(rows.gate + i);
      if (rows.value) store<V>(rows.value + i, result.value);
      if constexpr (activation == Activation::none)
        result = {result.value * gate, gate};
      else
        result = {result.value * gate, result.slope * gate};
    }
    if (rows.slope) store<V>(rows.slope + i, result.slope);
    store<V>(rows.y + i,
             rows.residual ? V(result.value + load<V>(rows.residual + i)) : result.value);
  }
}

// The same for any count; the last vector goes through a buffer.
template <Activation activation, bool gated, typename V, typename T = Scalar<V>>
void finish(const Rows<T>& rows, int64_t count) {
  if (activation == Activation::none && !gated && !rows.residual) return;
  constexpr int lanes = sizeof(V) / sizeof(T);
  const int64_t whole = count / lanes * lanes, rest = count - whole;
  finish_vectors<activation, gated, V>(rows, whole);
  if (rest == 0) return;
  T last[5][lanes] = {};
  std::copy_n(rows.y + whole, rest, last[0]);
  if (rows.residual) std::copy_n(rows.residual + whole, rest, last[3]);
  if (gated) std::copy_n(rows.gate + whole, rest, last[4]);
  finish_vectors<activation, gated, V>(
      Rows<T>{last[0], rows.slope ? last[1] : nullptr, rows.value ? last[2] : nullptr,
              rows.residual ? last[3] : nullptr, last[4]},
      lanes);
  std::copy_n(last[0], rest, rows.y + whole);
  if (rows.slope) std::copy_n(last[1], rest, rows.slope + whole);
  if (rows.value) std::copy_n(last[2], rest, rows.value + whole);
}

template <typename Function>
void with_activation(Activation activation, Function&& function) {
  switch (activation) {
    case Activation::none:
      return function(std::integral_constant<Activation, Activation::none>{});
    case Activation::silu:
      return function(std::integral_constant<Activation, Activation::silu>{});
    case Activation::ssp:
      return function(std::integral_constant<Activation, Activation::ssp>{});
    case Activation::tanh:
      return function(std::integral_constant<Activation, Activation::tanh>{});
  }
}

}  // namespace

template <Isa isa, typename T>
void dense_cpu(Activation activation, const T* x, const T* w, const T* bias, const T* residual,
               const DenseGate<T>* gate, T* y, T* slope, T* value, T* workspace,
               const DenseShape& shape, int threads) {
  using Tile = Tile<isa, T>;
  using V = typename Tile::V;
  Panels<Tile, T> panels(workspace, shape);
  panels.pack_transposed(w, bias, threads);
  const DenseShape gate_shape{shape.rows, shape.columns, gate ? gate->depth : 0};
  Panels<Tile, T> gate_panels(workspace + dense_workspace(shape), gate_shape);
  if (gate) gate_panels.pack_transposed(gate->weight, nullptr, threads);
  with_activation(activation, [&](auto kind) {
    for_chunks(shape.rows, Tile::rows, threads, [&](int64_t first, int64_t rows) {
      const int64_t offset = first * shape.columns, count = rows * shape.columns;
      const auto at = [&](auto* data) { return data ? data + offset : nullptr; };
      Rows<T> chunk{y + offset, at(slope), at(value), at(residual), nullptr};
      multiply_rows(panels, x + first * shape.depth, rows, shape.depth, chunk.y);
      if (!gate) return finish<kind(), false, V>(chunk, count);
      const std::unique_ptr<T[]> product(new T[count]);
      multiply_rows(gate_panels, gate->basis + first * gate->depth, rows, gate->depth,
                    product.get());
      chunk.gate = product.get();
      finish<kind(), true, V>(chunk, count);
    });
  });
}

template <Isa isa, typename T>
void dense_input_grad_cpu(const T* g, const T* slope, const T* w, const T* residual, T* gx,
                          T* workspace, const DenseShape& shape, int threads) {
  using Tile = Tile<isa, T>;
  Panels<Tile, T> panels(workspace, shape);
  panels.pack(w, threads);
  for_chunks(shape.rows, Tile::rows, threads, [&](int64_t first, int64_t rows) {
    alignas(64) T product[chunk_rows * block_depth];
    T* to = gx + first * shape.columns;
    for_blocks(shape.depth, [&](int64_t k, int64_t count) {
      const T* a = g + first * shape.depth + k;
      int64_t stride = shape.depth;
      if (slope) {
        const T* factor = slope + first * shape.depth + k;
        for (int64_t r = 0; r < rows; ++r) {
          const T *left = a + r * stride, *right = factor + r * stride;
          T* row = product + r * count;
          for (int64_t i = 0; i < count; ++i) row[i] = left[i] * right[i];
        }
        a = product;
        stride = count;
      }
      panels.multiply(rows, a, stride, !slope && shape.depth <= block_depth, k, count, to);
    });
    if (!residual) return;
    const T* skipped = residual + first * shape.columns;
    for (int64_t i = 0; i < rows * shape.columns; ++i) to[i] += skipped[i];
  });
}

#define MOLKERN_INSTANTIATE(T)                                                                     \
  template void dense_cpu<Isa::MOLKERN_ISA, T>(Activation, const T*, const T*, const T*, const T*, \
                                               const DenseGate<T>*, T*, T*, T*, T*,                \
                                               const DenseShape&, int);                            \
  template void dense_input_grad_cpu<Isa::MOLKERN_ISA, T>(const T*, const T*, const T*, const T*,  \
                                                          T*, T*, const DenseShape&, int);
MOLKERN_INSTANTIATE(float)
MOLKERN_INSTANTIATE(double)

}  // namespace molkern
