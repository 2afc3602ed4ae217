// Moments of an atom's edges, M[lm, f] = sum over edges of Y_lm(u) z[l, f], in shared memory, see
// triplets.h. For moments_*_cuda.cu only.
//
// Harmonics: Y_l0 = Q_l^0(z), and for m > 0 the real and the imaginary part of
// n_lm Q_l^m(z) (x + i y)^m with n_lm^2 = 2 (l - m)! / (l + m)!. Q_l^m, the m-th derivative of P_l,
// obeys Q_m^m = (2 m - 1)!!, (l - m) Q_l^m = (2 l - 1) z Q_{l-1}^m - (l + m - 1) Q_{l-2}^m.
// The 2 l + 1 harmonics of an order fill slots in whole chunks of four: m = 0, then pairs; zeros
// behind them.
//
// Without weights every channel is a pass of its own; with them all are summed in one.
#pragma once

#include "triplets/triplets_device.cuh"

namespace molkern {

constexpr int moment_threads = 128;
constexpr int moment_lanes = 16;  // over features; a group of them takes an edge or a chunk
constexpr int moment_groups = moment_threads / moment_lanes;
constexpr int chunk_slots = 4;
template <typename N>
constexpr int moment_row = moment_lanes * row_numbers<N>;  // features at a time
template <typename N>
constexpr int moment_edges = sizeof(N) == 16 ? 4 : 8;  // at a time; a multiple of groups in a warp

MOLKERN_INLINE int chunks_before(int l) {  // of orders 0 ... l - 1: (2 k + 4) / 4 of order k
  return l + (l / 2) * ((l - 1) / 2);
}

struct MomentPass {
  int first, count;  // channels
};
__device__ __forceinline__ MomentPass moment_pass(const TripletForm& form, int pass) {
  return form.weighted ? MomentPass{0, form.channels} : MomentPass{pass, 1};
}
__device__ __forceinline__ int moment_passes(const TripletForm& form) {
  return form.weighted ? 1 : form.channels;
}

template <typename N>
struct MomentTile {
  using T = ValueOf<N>;
  static constexpr int row = moment_row<N>, edges = moment_edges<N>;
  static constexpr int chunk_size = chunk_slots * row + row_numbers<N>;  // spreads over the banks

  N* moments;              // [chunks, chunk_size]
  N* messages;             // [edges, orders, row] z
  N *harmonics, *adjoint;  // [edges, chunks, chunk_slots] Y, and the derivative by Y
  N* weights;              // [channels of a pass, row]
  N* pairs;                // [edges, 8 or more] of excluded pairs
  OutgoingEdge<N>* edge;   // [edges] of either role
  T *norm, *inverse;       // [orders, orders] n_lm; [orders] 1 / k
  int orders, chunks, padded;

  __device__ __forceinline__ MomentTile(const TripletForm& form)
      : orders(form.orders), chunks(chunks_before(form.orders)), padded(padded_channels(form)) {
    SharedCutter cut{dynamic_shared<unsigned char>()};
    moments = cut.take<N>(chunks * chunk_size);
    messages = cut.take<N>(edges * orders * row);
    harmonics = cut.take<N>(edges * chunks * chunk_slots);
    adjoint = cut.take<N>(edges * chunks * chunk_slots);
    weights = cut.take<N>(padded * row);
    pairs = cut.take<N>(edges * padded);
    edge = cut.take<OutgoingEdge<N>>(edges);
    norm = cut.take<T>(orders * orders);
    inverse = cut.take<T>(orders);
  }
  MOLKERN_INLINE static int padded_channels(const TripletForm& form) {
    return form.weighted ? (form.channels + tile_channels - 1) / tile_channels * tile_channels
                         : tile_channels;
  }
  static size_t size(const TripletForm& form) {
    const int chunks = chunks_before(form.orders), padded = padded_channels(form);
    return shared_size<N>(chunks * chunk_size) + shared_size<N>(edges * form.orders * row) +
           2 * shared_size<N>(edges * chunks * chunk_slots) + shared_size<N>(padded * row) +
           shared_size<N>(edges * padded) + shared_size<OutgoingEdge<N>>(edges) +
           shared_size<T>(form.orders * form.orders) + shared_size<T>(form.orders);
  }
};

// Four numbers, or the numbers of a lane, from shared memory.
template <int count, typename N>
__device__ __forceinline__ void read_numbers(const N* from, N (&numbers)[count]) {
  constexpr int width = row_numbers<N>;
#pragma unroll
  for (int j = 0; j < count; j += width) {
    const auto part = *reinterpret_cast<const RowPart<N, width>*>(from + j);
#pragma unroll
    for (int i = 0; i < width; ++i) numbers[j + i] = part.value[i];
  }
}
template <typename N>
__device__ __forceinline__ void write_numbers(N* to, const N (&numbers)[row_numbers<N>]) {
  RowPart<N, row_numbers<N>> part;
#pragma unroll
  for (int k = 0; k < row_numbers<N>; ++k) part.value[k] = numbers[k];
  *reinterpret_cast<RowPart<N, row_numbers<N>>*>(to) = part;
}

// Once per block.
template <typename N>
__device__ __forceinline__ void fill_tables(const MomentTile<N>& tile) {
  using T = ValueOf<N>;
  for (int k = threadIdx.x; k < tile.orders * tile.orders; k += blockDim.x) {
    const int l = k / tile.orders, m = k % tile.orders;
    T square = m > 0 ? T(2) : T(1);
    for (int i = l - m + 1; i <= l + m && m <= l; ++i) square /= T(i);
    tile.norm[k] = sqrt(square);
  }
  for (int k = threadIdx.x; k < tile.orders; k += blockDim.x) tile.inverse[k] = T(1) / T(max(k, 1));
}

// For every pass and tile of features: no moments yet, and the weights, [channel, feature].
template <typename N>
__device__ __forceinline__ void clear_moments(const MomentTile<N>& tile) {
  for (int k = threadIdx.x; k < tile.chunks * tile.chunk_size; k += blockDim.x)
    tile.moments[k] = constant<N>(0);
}
template <typename N>
__device__ __forceinline__ void fill_pass_weights(const TripletArguments<N>& in,
                                                  const MomentTile<N>& tile, int first_f) {
  for (int k = threadIdx.x; k < tile.padded * tile.row; k += blockDim.x) {
    const int t = k % tile.padded, f = k / tile.padded;
    N w = constant<N>(in.form.weighted || t > 0 ? 0 : 1);
    if (in.form.weighted && t < in.form.channels && first_f + f < in.form.features)
      w = in.w[int64_t{first_f + f} * in.form.channels + t];
    tile.weights[t * tile.row + f] = w;
  }
}

// (x + i y)^m
template <typename N>
__device__ __forceinline__ void complex_power(N x, N y, int m, N* re, N* im) {
  *re = constant<N>(1);
  *im = constant<N>(0);
  for (int k = 0; k < m; ++k) {
    const N next = *re * x - *im * y;
    *im = *re * y + *im * x;
    *re = next;
  }
}

template <typename T>
__device__ __forceinline__ T double_factorial(int m) {  // (2 m - 1)!!
  T product = 1;
  for (int k = 1; k < m; ++k) product *= T(2 * k + 1);
  return product;
}

// The harmonics of `count` edges; `alternate` turns the sign of odd orders. An edge of length zero
// has only that of order zero, in every frame. A thread for every edge and m.
template <typename N>
__device__ __forceinline__ void fill_harmonics(const MomentTile<N>& tile, int count,
                                               bool alternate) {
  using T = ValueOf<N>;
  for (int item = threadIdx.x; item < count * tile.orders; item += blockDim.x) {
    const int e = item / tile.orders, m = item % tile.orders;
    const EdgeVector<N>& d = tile.edge[e].d;
    N* row = tile.harmonics + e * tile.chunks * chunk_slots;
    const bool has_direction = value_of(d.inverse_length) > T(0);
    N re, im;
    complex_power(d.u[0], d.u[1], m, &re, &im);
    N now = constant<N>(double_factorial<T>(m)), before = constant<N>(0);
    for (int l = m; l < tile.orders; ++l) {
      N* slots = row + chunks_before(l) * chunk_slots;
      T norm = tile.norm[l * tile.orders + m] * T(alternate && l % 2 ? -1 : 1);
      if (l > 0 && !has_direction) norm = 0;
      const N scaled = now * norm;
      if (m == 0) {
        slots[0] = scaled;
        for (int j = 2 * l + 1; j % chunk_slots; ++j) slots[j] = constant<N>(0);
      } else {
        slots[2 * m - 1] = scaled * re;
        slots[2 * m] = scaled * im;
      }
      const T inverse = tile.inverse[min(l + 1 - m, tile.orders - 1)];  // the last is not used
      const N next = (d.u[2] * now) * (T(2 * l + 1) * inverse) - before * (T(l + m) * inverse);
      before = now;
      now = next;
    }
  }
}

// messages[e, l, f] = x[f] sum over channels of q[l, p] w[p, f], with x if `with_features`. A group
// for every edge.
template <bool packed, typename N>
__device__ __forceinline__ void fill_messages(const TripletArguments<N>& in,
                                              const MomentTile<N>& tile, MomentPass pass, int count,
                                              int first_f, bool with_features) {
  constexpr int width = row_numbers<N>;
  const int lane = threadIdx.x % moment_lanes, e = threadIdx.x / moment_lanes;
  if (e >= count) return;
  const int64_t edge = tile.edge[e].edge;
  N x[width];
  load_numbers<packed>(in.x, edge * in.form.features, first_f + lane * width, in.form.features, x);
  for (int first_t = 0; first_t < pass.count; first_t += tile_channels) {
    N w[tile_channels][width];
#pragma unroll
    for (int t = 0; t < tile_channels; ++t)
      read_numbers(tile.weights + (first_t + t) * tile.row + lane * width, w[t]);
    const bool last = first_t + tile_channels >= pass.count;
    for (int l = 0; l < tile.orders; ++l) {
      N* place = tile.messages + (e * tile.orders + l) * tile.row + lane * width;
      const int64_t row = (edge * tile.orders + l) * in.form.channels + pass.first + first_t;
      N sum[width];
#pragma unroll
      for (int k = 0; k < width; ++k) sum[k] = first_t == 0 ? constant<N>(0) : place[k];
#pragma unroll
      for (int t = 0; t < tile_channels; ++t) {
        if (first_t + t >= pass.count) break;
        const N q = in.q[row + t];
#pragma unroll
        for (int k = 0; k < width; ++k) sum[k] += q * w[t][k];
      }
#pragma unroll
      for (int k = 0; k < width; ++k)
        if (last && with_features) sum[k] = sum[k] * x[k];
      write_numbers(place, sum);
    }
  }
}

// The order that a chunk belongs to.
__device__ __forceinline__ int order_of(int chunk) {
  int l = 0;
  while (chunks_before(l + 1) <= chunk) ++l;
  return l;
}

// Adds Y z of `count` edges: a group for every chunk. `order_stride` is 0 where z is the same for
// all orders.
template <typename N>
__device__ __forceinline__ void add_moments(const MomentTile<N>& tile, int count,
                                            int order_stride) {
  constexpr int width = row_numbers<N>;
  const int lane = threadIdx.x % moment_lanes;
  for (int chunk = threadIdx.x / moment_lanes; chunk < tile.chunks; chunk += moment_groups) {
    const N* z = tile.messages + order_of(chunk) * order_stride + lane * width;
    N* place = tile.moments + chunk * tile.chunk_size + lane * width;
    N sum[chunk_slots][width];
#pragma unroll
    for (int i = 0; i < chunk_slots; ++i) read_numbers(place + i * tile.row, sum[i]);
    for (int e = 0; e < count; ++e) {
      N y[chunk_slots], message[width];
      read_numbers(tile.harmonics + (e * tile.chunks + chunk) * chunk_slots, y);
      read_numbers(z + e * tile.orders * tile.row, message);
#pragma unroll
      for (int i = 0; i < chunk_slots; ++i)
#pragma unroll
        for (int k = 0; k < width; ++k) sum[i][k] += y[i] * message[k];
    }
#pragma unroll
    for (int i = 0; i < chunk_slots; ++i) write_numbers(place + i * tile.row, sum[i]);
  }
}

// Adds sum over the slots of chunks first ... last of Y M, for one edge and the features of a lane.
template <typename N>
__device__ __forceinline__ void contract_moments(const MomentTile<N>& tile, int e, int first,
                                                 int last, int lane, N (&sum)[row_numbers<N>]) {
  constexpr int width = row_numbers<N>;
  for (int chunk = first; chunk < last; ++chunk) {
    const N* place = tile.moments + chunk * tile.chunk_size + lane * width;
    N y[chunk_slots];
    read_numbers(tile.harmonics + (e * tile.chunks + chunk) * chunk_slots, y);
#pragma unroll
    for (int i = 0; i < chunk_slots; ++i) {
      N moment[width];
      read_numbers(place + i * tile.row, moment);
#pragma unroll
      for (int k = 0; k < width; ++k) sum[k] += y[i] * moment[k];
    }
  }
}

// Fetches the next edges of an atom, of either role; returns their number. All threads call it.
template <typename N>
__device__ __forceinline__ int next_edges(const TripletArguments<N>& in, const MomentTile<N>& tile,
                                          const Adjacency& graph, EdgeRange range, int done) {
  const int count = min(range.count - done, tile.edges), own = threadIdx.x;
  __syncthreads();
  if (own < count) {
    OutgoingEdge<N>& edge = tile.edge[own];
    edge.edge = static_cast<int32_t>(graph.edge(int64_t{range.first} + done + own));
    edge.excluded = in.graph.excluded[edge.edge];
    edge.d = edge_vector(in.v, edge.edge);
  }
  __syncthreads();
  return count;
}

// The moments of all that an atom receives, for one pass and tile of features.
template <bool packed, typename N>
__device__ __forceinline__ void sum_moments(const TripletArguments<N>& in,
                                            const MomentTile<N>& tile, EdgeRange incoming,
                                            MomentPass pass, int first_f) {
  clear_moments(tile);
  for (int done = 0; done < incoming.count; done += tile.edges) {
    const int count = next_edges(in, tile, in.graph.receivers, incoming, done);
    fill_harmonics(tile, count, false);
    fill_messages<packed>(in, tile, pass, count, first_f, true);
    __syncthreads();
    add_moments(tile, count, tile.row);
  }
  __syncthreads();
}

}  // namespace molkern
