// DTNN's messages on the GPU. A block takes rows, one after another, and their edges in chunks (see
// dtnn_device.cuh); the gradient of the table walks the edges by interval. What several threads or
// blocks add to is summed in parts, which are added in order.
#include <stdexcept>
#include <string>

#include "dtnn/dtnn_device.cuh"

namespace molkern {
namespace {

constexpr int sum_threads = 256;
constexpr int64_t most_blocks = 1 << 20;

// W [C, K] -> [K, C]. Must move: both once.
template <typename T>
__global__ void __launch_bounds__(sum_threads)
    dtnn_transpose(const T* __restrict__ w, T* __restrict__ by_factor, int64_t channels,
                   int64_t factors) {
  const int64_t k = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (k < channels * factors) by_factor[k] = w[k % channels * factors + k / channels];
}

// y, or gg with a direction; rows are receivers. Must move: x and the table once (their gathers
// come from the caches), y once, a distance and indices per edge; computes 2 C K FLOP per edge,
// with a direction twice that, with its W three times.
template <typename Kind, typename T = typename Kind::T>
__global__ void __launch_bounds__(dtnn_threads, 4)
    dtnn_value_rows(DtnnArguments<T> a, Adjacency graph, T* __restrict__ y) {
  const Chunk<Kind> chunk(a);
  const int channels = static_cast<int>(a.in.channels);
  for (int64_t row = blockIdx.x; row < graph.rows; row += gridDim.x) {
    for (int i = threadIdx.x; i < a.groups * channels; i += dtnn_threads) chunk.sums[i] = T(0);
    const int64_t end = graph.row_ptr[row + 1];
    for (int64_t first = graph.row_ptr[row]; first < end; first += chunk.edges) {
      fetch_entries<false>(a, chunk, graph, row, first, [](int64_t) {});
      const int count = *chunk.count;
      fill_products(a, chunk, count);
      to_channels(a, chunk, count, [&](int c, int group, T(&z)[Kind::planes][Kind::group]) {
        T sum = chunk.sums[group * channels + c];
#pragma unroll
        for (int i = 0; i < Kind::group; ++i) {
          if (group * Kind::group + i >= count) continue;
          const T m = tanh(z[0][i]);
          if constexpr (Kind::directed)
            sum += (T(1) - m) * (T(1) + m) * z[1][i];
          else
            sum += m;
        }
        chunk.sums[group * channels + c] = sum;
      });
      __syncthreads();
    }
    __syncthreads();
    for (int c = threadIdx.x; c < channels; c += dtnn_threads) {
      T sum = 0;
      for (int group = 0; group < a.groups; ++group) sum += chunk.sums[group * channels + c];
      y[row * channels + c] = sum;
    }
    __syncthreads();
  }
}

// gw [C, K] += the sum over a chunk's edges of u p, or of u~ p + u p~.
template <typename Kind, typename T>
__device__ __forceinline__ void add_weights(const DtnnArguments<T>& a, const Chunk<Kind>& chunk,
                                            int count, T* gw) {
  constexpr int word = Kind::word, tile = 4;  // factors of a thread, `part` apart
  const int factors = static_cast<int>(a.in.filters.features);
  const int part = (factors + tile - 1) / tile;
  const int words = (count + word - 1) / word;
  for (int item = threadIdx.x; item < part * static_cast<int>(a.in.channels);
       item += dtnn_threads) {
    const int k = item % part, c = item / part;
    T sum[tile] = {};
    for (int e = 0; e < words * word; e += word) {
      const T* from = chunk.u + c * chunk.stride + e;
      const Pack<T, word> u = load_pack<word>(from);
      Pack<T, word> u_change = {};
      if constexpr (Kind::directed) u_change = load_pack<word>(from + chunk.u_plane);
#pragma unroll
      for (int j = 0; j < tile; ++j) {
        if (k + j * part >= factors) continue;
        const T* other = chunk.p + (k + j * part) * chunk.stride + e;
        const Pack<T, word> p = load_pack<word>(other);
        if constexpr (Kind::directed) {
          const Pack<T, word> p_change = load_pack<word>(other + chunk.p_plane);
#pragma unroll
          for (int i = 0; i < word; ++i)
            sum[j] += u_change.value[i] * p.value[i] + u.value[i] * p_change.value[i];
        } else {
#pragma unroll
          for (int i = 0; i < word; ++i) sum[j] += u.value[i] * p.value[i];
        }
      }
    }
#pragma unroll
    for (int j = 0; j < tile; ++j)
      if (k + j * part < factors) gw[int64_t{c} * factors + k + j * part] += sum[j];
  }
}

// From q: adds to the sums of gx, and leaves every factor's part of gd in place of p.
template <typename Kind, typename T>
__device__ __forceinline__ void finish_edges(const DtnnArguments<T>& a, const Chunk<Kind>& chunk,
                                             int count) {
  constexpr int word = Kind::word;
  const int factors = static_cast<int>(a.in.filters.features);
  to_factors(a, chunk, count, [&](int k, int group, T(&q)[Kind::planes][Kind::group]) {
    T sum = chunk.sums[group * factors + k];
    T* to = chunk.p + k * chunk.stride + group * Kind::group;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Pack<T, word> by_distance = {};
#pragma unroll
      for (int i = 0; i < word; ++i) {
        const int at = half * word + i, e = group * Kind::group + at;
        if (e >= count) continue;
        const ChunkEdge<Kind>& entry = chunk.entries[e];
        const Filter<T> f = filter_at<true>(a, entry, k);
        T x, hx;
        sender_feature(a, entry, k, &x, &hx);
        if constexpr (Kind::directed) {
          sum += q[1][at] * f.value + q[0][at] * f.change;
          by_distance.value[i] =
              q[1][at] * (x * f.slope) + q[0][at] * (hx * f.slope + x * f.slope_change);
        } else {
          sum += q[0][at] * f.value;
          by_distance.value[i] = q[0][at] * (x * f.slope);
        }
      }
      store_pack(to + half * word, by_distance);
    }
    chunk.sums[group * factors + k] = sum;
  });
  __syncthreads();
}

// The gradient by x and by distances, and by W where gw_parts [blocks, C, K] is not null; with a
// direction the products. Rows are senders, every block has its share of them. Must move: x, g and
// the table once (gathers come from the caches), gx once, distance, gd and indices per edge;
// computes 2 C K FLOP for each of z, q and gW, with a direction twice that.
template <typename Kind, typename T = typename Kind::T>
__global__ void __launch_bounds__(dtnn_threads, 4)
    dtnn_gradient_rows(DtnnArguments<T> a, Adjacency graph, const T* __restrict__ g,
                       const T* __restrict__ added, T* __restrict__ gx, T* __restrict__ gd,
                       T* __restrict__ gw_parts) {
  const Chunk<Kind> chunk(a);
  const int factors = static_cast<int>(a.in.filters.features);
  const int64_t weights = a.in.channels * factors;
  T* gw = gw_parts ? gw_parts + blockIdx.x * weights : nullptr;
  if (gw)
    for (int64_t i = threadIdx.x; i < weights; i += dtnn_threads) gw[i] = T(0);
  const int64_t last = graph.rows * (blockIdx.x + 1) / gridDim.x;
  for (int64_t row = graph.rows * blockIdx.x / gridDim.x; row < last; ++row) {
    for (int i = threadIdx.x; i < a.groups * factors; i += dtnn_threads) chunk.sums[i] = T(0);
    const int64_t end = graph.row_ptr[row + 1];
    for (int64_t first = graph.row_ptr[row]; first < end; first += chunk.edges) {
      fetch_entries<true>(a, chunk, graph, row, first,
                          [&](int64_t edge) { gd[edge] = added ? added[edge] : T(0); });
      const int count = *chunk.count;
      fill_products(a, chunk, count);
      fill_cotangents(a, chunk, count, g);
      if (gw) {
        add_weights(a, chunk, count, gw);
        __syncthreads();
      }
      finish_edges(a, chunk, count);
      // gd in slices of the factors, then their sums.
      const int slices = dtnn_threads / chunk.edges;
      const int own = static_cast<int>(threadIdx.x);
      const int slice = own / chunk.edges, e = own % chunk.edges;
      T sum = 0;
      if (e < count)
        for (int k = slice; k < factors; k += slices) sum += chunk.p[k * chunk.stride + e];
      chunk.slices[own] = sum;
      __syncthreads();
      if (own < count) {
        const int32_t edge = chunk.entries[e].edge;
        T total = added ? added[edge] : T(0);
        for (int s = 0; s < slices; ++s) total += chunk.slices[s * chunk.edges + e];
        gd[edge] = total;
      }
      __syncthreads();
    }
    __syncthreads();
    for (int k = threadIdx.x; k < factors; k += dtnn_threads) {
      T sum = 0;
      for (int group = 0; group < a.groups; ++group) sum += chunk.sums[group * factors + k];
      gx[row * factors + k] = sum;
    }
    __syncthreads();
  }
}

// parts [intervals, degree + 1, K]: what the edges of each interval add to the rows of gC that it
// reaches. Must move: x and g as they are gathered, the parts once, a distance and indices per
// edge; computes 2 C K FLOP for each of z and q, with a direction twice that.
template <typename Kind, typename T = typename Kind::T>
__global__ void __launch_bounds__(dtnn_threads, 4)
    dtnn_table_intervals(DtnnArguments<T> a, SplineBins bins, const T* __restrict__ g,
                         T* __restrict__ parts) {
  constexpr int word = Kind::word, degree = Kind::degree;
  const Chunk<Kind> chunk(a);
  const int factors = static_cast<int>(a.in.filters.features);
  for (int32_t m = blockIdx.x; m < a.in.filters.grid.intervals; m += gridDim.x) {
    T* part = parts + int64_t{m} * (degree + 1) * factors;
    for (int i = threadIdx.x; i < (degree + 1) * factors; i += dtnn_threads) part[i] = T(0);
    const int64_t end = bins.ptr[m + 1];
    for (int64_t first = bins.ptr[m]; first < end; first += chunk.edges) {
      fetch_interval(a, chunk, bins, m, first);
      const int count = *chunk.count;
      fill_products(a, chunk, count);
      fill_cotangents(a, chunk, count, g);
      // In place of p: q x, or q~ x + q hx and then q x.
      to_factors(a, chunk, count, [&](int k, int group, T(&q)[Kind::planes][Kind::group]) {
        T* to = chunk.p + k * chunk.stride + group * Kind::group;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          Pack<T, word> number = {}, steep = {};
#pragma unroll
          for (int i = 0; i < word; ++i) {
            const int at = half * word + i, e = group * Kind::group + at;
            if (e >= count) continue;
            T x, hx;
            sender_feature(a, chunk.entries[e], k, &x, &hx);
            if constexpr (Kind::directed) {
              number.value[i] = q[1][at] * x + q[0][at] * hx;
              steep.value[i] = q[0][at] * x;
            } else {
              number.value[i] = q[0][at] * x;
            }
          }
          store_pack(to + half * word, number);
          if constexpr (Kind::directed) store_pack(to + chunk.p_plane + half * word, steep);
        }
      });
      __syncthreads();
      for (int k = threadIdx.x; k < factors; k += dtnn_threads) {
        T sum[degree + 1];
#pragma unroll
        for (int t = 0; t <= degree; ++t) sum[t] = part[t * factors + k];
        for (int e = 0; e < count; ++e) {
          const ChunkEdge<Kind>& entry = chunk.entries[e];
          const T number = chunk.p[k * chunk.stride + e];
#pragma unroll
          for (int t = 0; t <= degree; ++t) sum[t] += entry.weight[0][t] * number;
          if constexpr (Kind::directed) {
            const T steep = entry.change * chunk.p[chunk.p_plane + k * chunk.stride + e];
#pragma unroll
            for (int t = 0; t <= degree; ++t) sum[t] += entry.weight[1][t] * steep;
          }
        }
#pragma unroll
        for (int t = 0; t <= degree; ++t) part[t * factors + k] = sum[t];
      }
      __syncthreads();
    }
  }
}

// gC from the parts of intervals. Must move: the parts once, gC once.
template <typename T>
__global__ void __launch_bounds__(sum_threads)
    dtnn_sum_table(const T* __restrict__ parts, T* __restrict__ gc, int64_t intervals, int degree,
                   int64_t factors) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= (intervals + degree) * factors) return;
  const int64_t row = i / factors, k = i % factors;
  T sum = 0;
  for (int t = degree; t >= 0; --t) {
    const int64_t m = row - t;
    if (m >= 0 && m < intervals) sum += parts[(m * (degree + 1) + t) * factors + k];
  }
  gc[i] = sum;
}

// gW from the parts of blocks. Must move: the parts once, gW once.
template <typename T>
__global__ void __launch_bounds__(sum_threads)
    dtnn_sum_weights(const T* __restrict__ parts, T* __restrict__ gw, int64_t blocks,
                     int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) return;
  T sum = 0;
  for (int64_t b = 0; b < blocks; ++b) sum += parts[b * count + i];
  gw[i] = sum;
}

// Hands out consecutive parts of the workspace.
template <typename T>
struct Workspace {
  T* next;
  T* take(int64_t count) { return (next += count) - count; }
};

template <typename T>
DtnnArguments<T> arguments(const DtnnInputs<T>& in, const DtnnDirection<T>* direction,
                           Workspace<T>& workspace, Stream stream) {
  const int64_t channels = in.channels, factors = in.filters.features, count = channels * factors;
  const auto transposed = [&](const T* w) {
    T* const to = workspace.take(count);
    launch("dtnn_transpose", dtnn_transpose<T>, dim3(blocks_for(count, sum_threads)),
           dim3(sum_threads), 0, stream, w, to, channels, factors);
    return to;
  };
  DtnnArguments<T> a{in, {}, transposed(in.weight), nullptr, most_groups};
  if (direction) a.along = *direction;
  if (a.along.weight) a.change_by_factor = transposed(a.along.weight);
  return a;
}

// As many groups as fit in the shared memory that every device has without being asked for more.
template <typename Kind, typename T>
size_t fit_chunk(DtnnArguments<T>& a) {
  constexpr size_t most = 48 * 1024;
  for (a.groups = most_groups; a.groups > 0; a.groups /= 2) {
    const size_t size = Chunk<Kind>::size(a.in.filters.features, a.in.channels, a.groups);
    if (size <= most) return size;
  }
  throw std::runtime_error("dtnn_message: " + std::to_string(a.in.filters.features) +
                           " factors and " + std::to_string(a.in.channels) +
                           " channels do not fit in the shared memory of a GPU");
}

// Calls function<degree, whether there is a direction>().
template <typename Function>
void with_kind(int degree, bool directed, const Function& function) {
  if (degree == 3 && directed)
    function(std::integral_constant<int, 3>{}, std::true_type{});
  else if (degree == 3)
    function(std::integral_constant<int, 3>{}, std::false_type{});
  else if (directed)
    function(std::integral_constant<int, 5>{}, std::true_type{});
  else
    function(std::integral_constant<int, 5>{}, std::false_type{});
}

inline dim3 grid_of(int64_t count) {
  return dim3(static_cast<unsigned>(std::min(count, most_blocks)));
}

}  // namespace

template <typename T>
void dtnn_value_cuda(const Adjacency& receivers, const DtnnInputs<T>& in,
                     const DtnnDirection<T>* direction, T* y, T* space, Stream stream) {
  if (receivers.rows == 0) return;
  Workspace<T> workspace{space};
  DtnnArguments<T> a = arguments(in, direction, workspace, stream);
  with_kind(in.filters.degree, direction, [&](auto degree, auto directed) {
    using Kind = DeviceKind<degree(), directed(), directed() ? 1 : 0, T>;
    const size_t shared = fit_chunk<Kind>(a);
    launch("dtnn_value_rows", dtnn_value_rows<Kind>, grid_of(receivers.rows), dim3(dtnn_threads),
           shared, stream, a, receivers, y);
  });
}

template <typename T>
void dtnn_grad_cuda(const Adjacency& senders, const SplineBins* bins, const DtnnInputs<T>& in,
                    const T* g, const DtnnDirection<T>* direction, const T* added,
                    const DtnnGradients<T>& out, T* space, Stream stream) {
  const int64_t factors = in.filters.features, count = in.channels * factors;
  const int64_t intervals = in.filters.grid.intervals;
  const int degree = in.filters.degree;
  Workspace<T> workspace{space};
  DtnnArguments<T> a = arguments(in, direction, workspace, stream);
  // Without parts of gW any number of blocks gives the same bits.
  const int64_t blocks =
      std::min(senders.rows, out.weight ? int64_t{dtnn_weight_blocks} : most_blocks);
  T* const gw_parts = out.weight ? workspace.take(blocks * count) : nullptr;
  if (senders.rows > 0)
    with_kind(degree, direction, [&](auto degree, auto directed) {
      using Kind = DeviceKind<degree(), directed(), directed() ? 2 : 1, T>;
      const size_t shared = fit_chunk<Kind>(a);
      launch("dtnn_gradient_rows", dtnn_gradient_rows<Kind>, grid_of(blocks), dim3(dtnn_threads),
             shared, stream, a, senders, g, added, out.x, out.distances, gw_parts);
    });
  if (out.weight)
    launch("dtnn_sum_weights", dtnn_sum_weights<T>, dim3(blocks_for(count, sum_threads)),
           dim3(sum_threads), 0, stream, gw_parts, out.weight, blocks, count);
  if (!out.table) return;
  T* const parts = workspace.take(intervals * (degree + 1) * factors);
  with_kind(degree, direction, [&](auto degree, auto directed) {
    using Kind = DeviceKind<degree(), directed(), directed() ? 1 : 0, T>;
    const size_t shared = fit_chunk<Kind>(a);
    launch("dtnn_table_intervals", dtnn_table_intervals<Kind>, grid_of(intervals),
           dim3(dtnn_threads), shared, stream, a, *bins, g, parts);
  });
  launch("dtnn_sum_table", dtnn_sum_table<T>,
         dim3(blocks_for((intervals + degree) * factors, sum_threads)), dim3(sum_threads), 0,
         stream, parts, out.table, intervals, degree, factors);
}

#define MOLKERN_INSTANTIATE(T)                                                               \
  template void dtnn_value_cuda<T>(const Adjacency&, const DtnnInputs<T>&,                   \
                                   const DtnnDirection<T>*, T*, T*, Stream);                 \
  template void dtnn_grad_cuda<T>(const Adjacency&, const SplineBins*, const DtnnInputs<T>&, \
                                  const T*, const DtnnDirection<T>*, const T*,               \
                                  const DtnnGradients<T>&, T*, Stream);
MOLKERN_INSTANTIATE(float)
MOLKERN_INSTANTIATE(double)

}  // namespace molkern
