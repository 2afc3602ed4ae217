#include <algorithm>

#include "common/launch.h"
#include "common/warp.h"
#include "spherical/spherical.h"
#include "spherical/spherical_math.h"

namespace molkern {
namespace {

constexpr int threads = 256;
constexpr int team_edges = 4;  // that a team of lanes works on in turn

// Arrays of the edges, null where absent.
template <typename T>
struct SphericalArrays {
  const T *hd, *g, *d;  // [E], [E, K], [E]
  T *rows, *sums;       // [E, K], [E]
  int64_t edges;
  int functions;  // K
};

// The value (derivatives = 0), the gradient (1) or the product (2). A team of lanes is dealt the
// functions of an edge. Must move: the value writes E K numbers and reads d once; the gradient
// reads g (E K numbers) and d once and writes gd once; the product also writes tg (E K numbers).
template <typename T, int derivatives>
__global__ void __launch_bounds__(threads, 3)
    spherical_radial_rows(SphericalForm form, SphericalArrays<T> arrays, int lanes) {
  SeriesTable& table = block_shared<SeriesTable>();
  for (int i = threadIdx.x; i < (form.orders + 1) * series_columns; i += threads)
    table.rows[i / series_columns][i % series_columns] =
        series_coefficient(i / series_columns, i % series_columns);
  __syncthreads();
  const int lane = threadIdx.x % lanes, team = threadIdx.x / lanes, teams = threads / lanes;
  for (int m = 0; m < team_edges; ++m) {
    const int64_t e = (int64_t{blockIdx.x} * team_edges + m) * teams + team;
    const bool there = e < arrays.edges;
    const SphericalEdge<double> edge = spherical_edge(
        form.cutoff, form.exponent, there ? static_cast<double>(arrays.d[e]) : form.cutoff);
    const double h = derivatives == 2 && there ? arrays.hd[e] / form.cutoff : 0;
    double sum = 0;
    for (int k = lane; there && k < arrays.functions; k += lanes) {
      const double z = form.zeros[k], scale = form.norms[k] * z;
      const int64_t place = e * arrays.functions + k;
      const RadialJet<double> y =
          spherical_jet<derivatives>(table, edge, k / form.radial, z, edge.x, edge.x);
      if (derivatives == 0) __stcs(arrays.rows + place, static_cast<T>(scale * y.value));
      if (derivatives == 1) sum += __ldcs(arrays.g + place) * (scale * y.first);
      if (derivatives == 2) {
        __stcs(arrays.rows + place, static_cast<T>((scale * y.first) * h));
        sum += __ldcs(arrays.g + place) * (scale * y.second);
      }
    }
    if (derivatives == 0) continue;
    sum = sum_lanes(sum, 1, lanes);
    const double result = (derivatives == 1 ? sum : h * sum) / form.cutoff;
    if (lane == 0 && there) arrays.sums[e] = static_cast<T>(result);
  }
}

template <int derivatives, typename T>
void run(const SphericalForm& form, SphericalArrays<T> arrays, Stream stream) {
  arrays.functions = form.orders * form.radial;
  const int lanes = row_shape(arrays.functions, 1).lanes;
  if (arrays.edges == 0) return;
  launch("spherical_radial_rows", spherical_radial_rows<T, derivatives>,
         dim3(blocks_for(arrays.edges, threads / lanes * team_edges)), dim3(threads), 0, stream,
         form, arrays, lanes);
}

}  // namespace

template <typename T>
void spherical_radial_cuda(const SphericalForm& form, const T* d, T* y, int64_t edges,
                           Stream stream) {
  run<0>(form, SphericalArrays<T>{nullptr, nullptr, d, y, nullptr, edges, 0}, stream);
}

template <typename T>
void spherical_radial_grad_cuda(const SphericalForm& form, const T* g, const T* d, T* gd,
                                int64_t edges, Stream stream) {
  run<1>(form, SphericalArrays<T>{nullptr, g, d, nullptr, gd, edges, 0}, stream);
}

template <typename T>
void spherical_radial_hvp_cuda(const SphericalForm& form, const T* hd, const T* g, const T* d,
                               T* tg, T* td, int64_t edges, Stream stream) {
  run<2>(form, SphericalArrays<T>{hd, g, d, tg, td, edges, 0}, stream);
}

#define MOLKERN_INSTANTIATE(T)                                                                   \
  template void spherical_radial_cuda<T>(const SphericalForm&, const T*, T*, int64_t, Stream);   \
  template void spherical_radial_grad_cuda<T>(const SphericalForm&, const T*, const T*, T*,      \
                                              int64_t, Stream);                                  \
  template void spherical_radial_hvp_cuda<T>(const SphericalForm&, const T*, const T*, const T*, \
                                             T*, T*, int64_t, Stream);
MOLKERN_INSTANTIATE(float)
MOLKERN_INSTANTIATE(double)

}  // namespace molkern
