// Loops over groups of edges, as many as a vector has lanes; within a group over the functions. All
// lanes of a vector then have the same order and zero, and rows [L R] are gathered and scattered,
// which costs little beside the functions.
#include <algorithm>
#include <limits>

#include "common/parallel.h"
#include "spherical/spherical.h"
#include "spherical/spherical_math.h"

namespace molkern {
namespace {

SeriesTable series_table(int orders) {
  SeriesTable table;
  for (int l = 0; l <= orders; ++l)
    for (int k = 0; k < series_columns; ++k) table.rows[l][k] = series_coefficient(l, k);
  return table;
}

// `count` numbers that lie `stride` apart, and zero in the other lanes.
template <typename V, typename T>
MOLKERN_INLINE V gather(const T* from, int64_t stride, int count, double rest = 0) {
  V x = splat<V>(rest);
  for (int i = 0; i < count; ++i) x[i] = from[i * stride];
  return x;
}

template <typename V, typename T>
MOLKERN_INLINE void scatter(T* to, int64_t stride, int count, V x) {
  for (int i = 0; i < count; ++i) to[i * stride] = static_cast<T>(x[i]);
}

// One group of at most as many edges as V has lanes: the value (derivatives = 0), the gradient (1)
// or the product (2); `count` is a constant for full groups.
template <int derivatives, typename V, typename T, typename Count>
MOLKERN_INLINE void run_group(const SphericalForm& form, const SeriesTable& table, const T* hd,
                              const T* g, const T* d, T* rows, T* sums, Count count) {
  constexpr int lanes = sizeof(V) / sizeof(double);
  const SphericalEdge<V> edge =
      spherical_edge(form.cutoff, form.exponent, gather<V>(d, 1, count, form.cutoff));
  double least = 1, largest = 0;
  for (int i = 0; i < lanes; ++i) {
    const double x = edge.x[i];
    least = std::min(least, x);
    // NaN must not be lost
    largest = x <= largest ? largest : x == x ? x : std::numeric_limits<double>::infinity();
  }
  const int64_t stride = int64_t{form.orders} * form.radial;
  const V h = derivatives == 2 ? V(gather<V>(hd, 1, count) / form.cutoff) : V{};
  V sum{};
  for (int l = 0, k = 0; l < form.orders; ++l)
    for (int n = 0; n < form.radial; ++n, ++k) {
      const double z = form.zeros[k], scale = form.norms[k] * z;
      const RadialJet<V> y = spherical_jet<derivatives>(table, edge, l, z, least, largest);
      if constexpr (derivatives == 0) scatter(rows + k, stride, count, V(scale * y.value));
      if constexpr (derivatives == 1) sum += gather<V>(g + k, stride, count) * (scale * y.first);
      if constexpr (derivatives == 2) {
        scatter(rows + k, stride, count, V((scale * y.first) * h));
        sum += gather<V>(g + k, stride, count) * (scale * y.second);
      }
    }
  if constexpr (derivatives == 1) scatter(sums, 1, count, V(sum / form.cutoff));
  if constexpr (derivatives == 2) scatter(sums, 1, count, V(h * sum / form.cutoff));
}

template <int derivatives, Isa isa, typename T>
void run(const SphericalForm& form, const T* hd, const T* g, const T* d, T* rows, T* sums,
         int64_t edges, int threads) {
  using V = Vector<double, vector_lanes<isa, double>>;
  constexpr int lanes = vector_lanes<isa, double>;
  const SeriesTable table = series_table(form.orders);
  const int64_t functions = int64_t{form.orders} * form.radial;
  parallel_for(threads, (edges + lanes - 1) / lanes, [&](int64_t group) {
    const int64_t e = group * lanes;
    const auto from = [e](auto* array, int64_t stride) {
      return array ? array + e * stride : array;
    };
    const auto group_of = [&](auto count) {
      run_group<derivatives, V>(form, table, from(hd, 1), from(g, functions), d + e,
                                from(rows, functions), from(sums, 1), count);
    };
    if (e + lanes <= edges)
      group_of(std::integral_constant<int, lanes>{});
    else
      group_of(static_cast<int>(edges - e));
  });
}

}  // namespace

template <Isa isa, typename T>
void spherical_radial_cpu(const SphericalForm& form, const T* d, T* y, int64_t edges, int threads) {
  run<0, isa, T>(form, nullptr, nullptr, d, y, nullptr, edges, threads);
}

template <Isa isa, typename T>
void spherical_radial_grad_cpu(const SphericalForm& form, const T* g, const T* d, T* gd,
                               int64_t edges, int threads) {
  run<1, isa, T>(form, nullptr, g, d, nullptr, gd, edges, threads);
}

template <Isa isa, typename T>
void spherical_radial_hvp_cpu(const SphericalForm& form, const T* hd, const T* g, const T* d, T* tg,
                              T* td, int64_t edges, int threads) {
  run<2, isa, T>(form, hd, g, d, tg, td, edges, threads);
}

#define MOLKERN_INSTANTIATE(T)                                                                 \
  template void spherical_radial_cpu<Isa::MOLKERN_ISA, T>(const SphericalForm&, const T*, T*,  \
                                                          int64_t, int);                       \
  template void spherical_radial_grad_cpu<Isa::MOLKERN_ISA, T>(const SphericalForm&, const T*, \
                                                               const T*, T*, int64_t, int);    \
  template void spherical_radial_hvp_cpu<Isa::MOLKERN_ISA, T>(                                 \
      const SphericalForm&, const T*, const T*, const T*, T*, T*, int64_t, int);
MOLKERN_INSTANTIATE(float)
MOLKERN_INSTANTIATE(double)

}  // namespace molkern
