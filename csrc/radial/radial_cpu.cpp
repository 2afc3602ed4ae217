// Loops over blocks of edges. In a block the terms of the edges are computed first, vectorised over
// edges, then each row [K] of basis functions, vectorised over k.
//
// Rows are worked on in whole vectors, with parameters padded by harmless ones (a
// width of 1 keeps their Gaussians from overflowing). Where K is no multiple of
// the width, the last vector of a row reaches into the next rows: writing, the next row then
// overwrites it; reading, its extra lanes are masked. Only where that would leave the block (the
// tensor, for reading) the last vector goes through a buffer.
#include <algorithm>
#include <vector>

#include "common/parallel.h"
#include "radial/radial.h"
#include "radial/radial_math.h"

namespace molkern {
namespace {

// Edges whose parameter sums are taken together: a constant, so that sums do not depend on threads.
constexpr int64_t block_edges = 256;

int64_t count_blocks(int64_t edges) { return (edges + block_edges - 1) / block_edges; }

// K numbers (zeros where null) in whole vectors.
template <typename V>
std::vector<V> padded(const Scalar<V>* values, int64_t count, Scalar<V> padding = 0) {
  constexpr int64_t lanes = sizeof(V) / sizeof(Scalar<V>);
  std::vector<V> result((count + lanes - 1) / lanes, splat<V>(padding));
  for (int64_t k = 0; values && k < count; ++k) result[k / lanes][k % lanes] = values[k];
  return result;
}

// The terms of up to block_edges edges, `lanes` of them in each entry.
template <typename V>
struct EdgeBlock {
  using T = Scalar<V>;
  static constexpr int lanes = sizeof(V) / sizeof(T);
  RadialEdge<V> groups[block_edges / lanes];

  void compute(const RadialConstants<T>& form, const T* d, int64_t count) {
    int64_t e = 0;
    for (; e + lanes <= count; e += lanes) groups[e / lanes] = radial_edge(form, load<V>(d + e));
    if (e == count) return;
    V rest{};
    for (int64_t i = e; i < count; ++i) rest[i - e] = d[i];
    groups[e / lanes] = radial_edge(form, rest);
  }

  // The terms of one edge in every lane.
  MOLKERN_INLINE RadialEdge<V> operator[](int64_t e) const {
    const RadialEdge<V>& group = groups[e / lanes];
    const int64_t i = e % lanes;
    const auto one = [i](const V& terms) { return splat<V>(terms[i]); };
    return {one(group.z),    one(group.inverse_z), one(group.near_zero),
            one(group.c),    one(group.c_d),       one(group.c_z),
            one(group.c_dd), one(group.c_dz),      one(group.c_zz)};
  }
};

// Rows of K numbers in whole vectors, see above.
template <typename V>
struct Rows {
  using T = Scalar<V>;
  static constexpr int lanes = sizeof(V) / sizeof(T);
  int64_t functions;
  int64_t vectors;
  Bits<V> in_last;  // which lanes of a row's last vector belong to it

  explicit Rows(int64_t functions)
      : functions(functions), vectors((functions + lanes - 1) / lanes) {
    for (int i = 0; i < lanes; ++i) in_last[i] = (vectors - 1) * lanes + i < functions ? -1 : 0;
  }

  // Calls visit(v) for every vector of the row; storing gives its result to the row at `to`, of
  // which the numbers before `end` may be written.
  template <typename Visit>
  MOLKERN_INLINE void write(T* to, const T* end, Visit&& visit) const {
    const int64_t whole = end - to >= vectors * lanes ? vectors : functions / lanes;
    for (int64_t v = 0; v < whole; ++v) store<V>(to + v * lanes, visit(v));
    if (whole == vectors) return;
    const V last = visit(whole);
    __builtin_memcpy(to + whole * lanes, &last, (functions - whole * lanes) * sizeof(T));
  }

  // A row's vector v, zero where the row has ended; numbers before `end` may be read.
  MOLKERN_INLINE V read(const T* from, const T* end, int64_t v) const {
    if (v + 1 < vectors) return load<V>(from + v * lanes);
    V last{};
    if (end - from >= vectors * lanes)
      last = load<V>(from + v * lanes);
    else
      __builtin_memcpy(&last, from + v * lanes, (functions - v * lanes) * sizeof(T));
    return in_last ? last : V{};
  }
};

// Parameter sums of every block, then their sum in order of the blocks.
template <typename V>
class BlockSums {
  using T = Scalar<V>;
  static constexpr int lanes = sizeof(V) / sizeof(T);
  int64_t vectors_;
  std::vector<V> sums_;

 public:
  BlockSums(int64_t blocks, int64_t vectors) : vectors_(vectors), sums_(blocks * vectors) {}

  V* block(int64_t b) { return sums_.data() + b * vectors_; }

  void total(T* result, int64_t functions) const {
    if (!result) return;
    const int64_t blocks = vectors_ ? static_cast<int64_t>(sums_.size()) / vectors_ : 0;
    std::vector<double> total(functions);
    for (int64_t b = 0; b < blocks; ++b)
      for (int64_t k = 0; k < functions; ++k)
        total[k] += sums_[b * vectors_ + k / lanes][k % lanes];
    std::copy(total.begin(), total.end(), result);
  }
};

// Calls run(block, first edge, number of edges) for every block.
template <typename Run>
void for_blocks(int64_t edges, int threads, Run&& run) {
  const int64_t blocks = count_blocks(edges);
  parallel_for(threads, blocks, [&](int64_t b) {
    run(b, b * block_edges, std::min(block_edges, edges - b * block_edges));
  });
}

// y = c b
template <RadialBasis basis, typename V, typename T = Scalar<V>>
void value(const RadialForm& form, const T* d, const T* p, const T* q, T* y, int64_t edges,
           int64_t functions, int threads) {
  const auto constants = radial_constants<T>(form);
  const std::vector<V> ps = padded<V>(p, functions), qs = padded<V>(q, functions, 1);
  const Rows<V> rows(functions);
  for_blocks(edges, threads, [&](int64_t, int64_t first, int64_t count) {
    EdgeBlock<V> terms;
    terms.compute(constants, d + first, count);
    const T* end = y + (first + count) * functions;
    for (int64_t e = 0; e < count; ++e) {
      const RadialEdge<V> edge = terms[e];
      rows.write(y + (first + e) * functions, end,
                 [&](int64_t v) { return edge.c * radial_value<basis>(edge, ps[v], qs[v]); });
    }
  });
}

// gd = sum over k of g (c_d b + c_z b_z),  gp = sum over e of g c b_p, gq likewise
template <RadialBasis basis, bool parameters, typename V, typename T = Scalar<V>>
void gradient(const RadialForm& form, const T* g, const T* d, const T* p, const T* q, T* gd, T* gp,
              T* gq, int64_t edges, int64_t functions, int threads) {
  const auto constants = radial_constants<T>(form);
  const std::vector<V> ps = padded<V>(p, functions), qs = padded<V>(q, functions, 1);
  const Rows<V> rows(functions);
  const int64_t kept = parameters ? count_blocks(edges) : 0;
  BlockSums<V> sums_p(kept, rows.vectors), sums_q(kept, rows.vectors);
  const T* end = g + edges * functions;
  for_blocks(edges, threads, [&](int64_t block, int64_t first, int64_t count) {
    EdgeBlock<V> terms;
    terms.compute(constants, d + first, count);
    V *sum_p = sums_p.block(block), *sum_q = sums_q.block(block);
    for (int64_t e = 0; e < count; ++e) {
      const RadialEdge<V> edge = terms[e];
      const T* row = g + (first + e) * functions;
      V sum{}, sum_z{};
      for (int64_t v = 0; v < rows.vectors; ++v) {
        const RadialGradient<V> f = radial_gradient<basis>(edge, ps[v], qs[v]);
        const V cotangent = rows.read(row, end, v);
        sum += cotangent * f.b;
        sum_z += cotangent * f.b_z;
        if constexpr (parameters) {
          sum_p[v] += (cotangent * edge.c) * f.b_p;
          sum_q[v] += (cotangent * edge.c) * f.b_q;
        }
      }
      gd[first + e] = lane_sum(V(edge.c_d * sum + edge.c_z * sum_z));
    }
  });
  sums_p.total(gp, functions);
  sums_q.total(gq, functions);
}

template <RadialBasis basis, bool parameters, typename V, typename T = Scalar<V>>
void product(const RadialForm& form, const T* hd, const T* hp, const T* hq, const T* g, const T* d,
             const T* p, const T* q, T* tg, T* td, T* tp, T* tq, int64_t edges, int64_t functions,
             int threads) {
  const auto constants = radial_constants<T>(form);
  const std::vector<V> ps = padded<V>(p, functions), qs = padded<V>(q, functions, 1);
  const std::vector<V> hps = padded<V>(hp, functions), hqs = padded<V>(hq, functions);
  const Rows<V> rows(functions);
  const int64_t kept = parameters ? count_blocks(edges) : 0;
  BlockSums<V> sums_p(kept, rows.vectors), sums_q(kept, rows.vectors);
  const T* g_end = g + edges * functions;
  for_blocks(edges, threads, [&](int64_t block, int64_t first, int64_t count) {
    EdgeBlock<V> terms;
    terms.compute(constants, d + first, count);
    V *sum_p = sums_p.block(block), *sum_q = sums_q.block(block);
    const T* tg_end = tg + (first + count) * functions;
    for (int64_t e = 0; e < count; ++e) {
      const RadialEdge<V> edge = terms[e];
      const T* row = g + (first + e) * functions;
      const V h = splat<V>(hd ? hd[first + e] : T(0));
      V sum_d{};
      rows.write(tg + (first + e) * functions, tg_end, [&](int64_t v) {
        const RadialHessian<V> f = radial_hessian<basis>(edge, ps[v], qs[v]);
        const V cotangent = rows.read(row, g_end, v);
        RadialProduct<V> t = product_along_d(edge, f, h);
        if constexpr (parameters) {
          const RadialProduct<V> more = product_along_pq(edge, f, hps[v], hqs[v]);
          t = {t.y + more.y, t.y_d + more.y_d, t.y_p + more.y_p, t.y_q + more.y_q};
          sum_p[v] += cotangent * t.y_p;
          sum_q[v] += cotangent * t.y_q;
        }
        sum_d += cotangent * t.y_d;
        return t.y;
      });
      td[first + e] = lane_sum(sum_d);
    }
  });
  sums_p.total(tp, functions);
  sums_q.total(tq, functions);
}

}  // namespace

template <Isa isa, typename T>
void radial_basis_cpu(const RadialForm& form, const T* d, const T* p, const T* q, T* y,
                      int64_t edges, int64_t functions, int threads) {
  using V = Vector<T, vector_lanes<isa, T>>;
  with_formulas(form.basis, [&](auto basis) {
    value<basis(), V>(form, d, p, q, y, edges, functions, threads);
  });
}

template <Isa isa, typename T>
void radial_basis_grad_cpu(const RadialForm& form, const T* g, const T* d, const T* p, const T* q,
                           T* gd, T* gp, T* gq, int64_t edges, int64_t functions, int threads) {
  using V = Vector<T, vector_lanes<isa, T>>;
  with_formulas(form.basis, [&](auto basis) {
    const auto run = gp || gq ? gradient<basis(), true, V> : gradient<basis(), false, V>;
    run(form, g, d, p, q, gd, gp, gq, edges, functions, threads);
  });
}

template <Isa isa, typename T>
void radial_basis_hvp_cpu(const RadialForm& form, const T* hd, const T* hp, const T* hq, const T* g,
                          const T* d, const T* p, const T* q, T* tg, T* td, T* tp, T* tq,
                          int64_t edges, int64_t functions, int threads) {
  using V = Vector<T, vector_lanes<isa, T>>;
  const bool parameters = hp || hq || tp || tq;
  with_formulas(form.basis, [&](auto basis) {
    const auto run = parameters ? product<basis(), true, V> : product<basis(), false, V>;
    run(form, hd, hp, hq, g, d, p, q, tg, td, tp, tq, edges, functions, threads);
  });
}

#define MOLKERN_INSTANTIATE(T)                                                                     \
  template void radial_basis_cpu<Isa::MOLKERN_ISA, T>(const RadialForm&, const T*, const T*,       \
                                                      const T*, T*, int64_t, int64_t, int);        \
  template void radial_basis_grad_cpu<Isa::MOLKERN_ISA, T>(const RadialForm&, const T*, const T*,  \
                                                           const T*, const T*, T*, T*, T*,         \
                                                           int64_t, int64_t, int);                 \
  template void radial_basis_hvp_cpu<Isa::MOLKERN_ISA, T>(                                         \
      const RadialForm&, const T*, const T*, const T*, const T*, const T*, const T*, const T*, T*, \
      T*, T*, T*, int64_t, int64_t, int);
MOLKERN_INSTANTIATE(float)
MOLKERN_INSTANTIATE(double)

}  // namespace molkern
