// What the spline kernels share: entries whose weights a warp computes together, one to a lane, and
// then takes in turn out of shared memory; and the sum over coefficients. For *_cuda.cu only.
//
// Where the table is read from: 512 intervals of 128 floats are 264 kB, more than shared memory
// holds. So tiles of features are a cache line wide, and all rows go by with the first tile before
// any with the second: at a time warps read 66 kB of the table, which the first cache can keep; of
// a larger one that part which most distances fall into.
#pragma once

#include <type_traits>

#include "common/launch.h"
#include "common/warp.h"
#include "splines/spline_cfconv.h"

namespace molkern {

constexpr int spline_warps = 4;  // of a block
constexpr int spline_threads = spline_warps * warp_lanes;
constexpr int spline_blocks = 4;  // at least, on a multiprocessor: keeps up to 128 registers

// The most lanes of a tile of one cache line.
template <typename T>
constexpr int line_lanes(int width) {
  return 128 / (width * static_cast<int>(sizeof(T)));
}

// What a lane computes of an entry for its warp. `rows` are two that the entry reads: of features
// and of the table, or of the features at both ends.
template <int degree, int derivatives, typename T>
struct alignas(16) SplineEntry {
  int32_t rows[2];
  T weight[derivatives + 1][degree + 1];
  T change;  // of the distance, along the direction

  __device__ __forceinline__ void fill(int32_t first_row, int32_t second_row,
                                       const SplineGrid<T>& grid, T d, int32_t interval, T h) {
    const auto weights = spline_weights<degree, derivatives>(grid, d, interval);
    rows[0] = first_row;
    rows[1] = second_row;
#pragma unroll
    for (int n = 0; n <= derivatives; ++n)
#pragma unroll
      for (int k = 0; k <= degree; ++k) weight[n][k] = weights.weight[n][k];
    change = h;
  }
};

// result[n] = sum over k of weight[n][k] times the coefficients from `row` on, which are read once
// for all sums.
template <int sums, int width, typename T, int terms>
__device__ __forceinline__ void splines_at(const T* row, int64_t features, const T (*weight)[terms],
                                           T (&result)[sums][width]) {
#pragma unroll
  for (int k = 0; k < terms; ++k) {
    const Pack<T, width> c = load_pack<width>(row + k * features);
#pragma unroll
    for (int n = 0; n < sums; ++n)
#pragma unroll
      for (int v = 0; v < width; ++v)
        result[n][v] = k ? result[n][v] + weight[n][k] * c.value[v] : weight[n][0] * c.value[v];
  }
}

// Calls run(std::integral_constant<int, degree>, std::bool_constant<directed>,
// std::integral_constant<int, width>).
template <typename T, typename Run>
void with_spline_kind(int degree, bool directed, int width, Run&& run) {
  const auto with_degree = [&](auto constant_degree) {
    const auto with_width = [&](auto constant_width) {
      if (directed)
        run(constant_degree, std::true_type{}, constant_width);
      else
        run(constant_degree, std::false_type{}, constant_width);
    };
    if (width == 1)
      with_width(std::integral_constant<int, 1>{});
    else
      with_width(std::integral_constant<int, 16 / sizeof(T)>{});
  };
  if (degree == 3)
    with_degree(std::integral_constant<int, 3>{});
  else
    with_degree(std::integral_constant<int, 5>{});
}

}  // namespace molkern
