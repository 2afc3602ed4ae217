// Sums over triplets by moments: the gradient. With moments M of what an atom receives and, of the
// same kind, moments N[lm, f] = sum over outgoing edges of Y_lm(u_b) g[b, f], the value contracted
// with g is sum over lm, f of M N: so the derivative by M is N, that by N is M.
#include "triplets/moments_device.cuh"

namespace molkern {
namespace {

// adjoint[e, slot] = sum over f of z[e, l, f] M[slot, f], over the tile of features. A thread for
// every edge and chunk.
template <typename N>
__device__ __forceinline__ void fill_adjoint(const MomentTile<N>& tile, int count,
                                             int order_stride) {
  constexpr int width = row_numbers<N>;
  for (int item = threadIdx.x; item < count * tile.chunks; item += blockDim.x) {
    const int chunk = item % tile.chunks, e = item / tile.chunks;
    const N* z = tile.messages + e * tile.orders * tile.row + order_of(chunk) * order_stride;
    const N* place = tile.moments + chunk * tile.chunk_size;
    N sum[chunk_slots];
#pragma unroll
    for (int i = 0; i < chunk_slots; ++i) sum[i] = constant<N>(0);
    for (int f = 0; f < tile.row; f += width) {
      N message[width];
      read_numbers(z + f, message);
#pragma unroll
      for (int i = 0; i < chunk_slots; ++i) {
        N moment[width];
        read_numbers(place + i * tile.row + f, moment);
#pragma unroll
        for (int k = 0; k < width; ++k) sum[i] += message[k] * moment[k];
      }
    }
#pragma unroll
    for (int i = 0; i < chunk_slots; ++i) tile.adjoint[item * chunk_slots + i] = sum[i];
  }
}

// The share of m in the derivative by the unit vector of an edge, given that by its harmonics.
template <typename N>
__device__ __forceinline__ void harmonics_backward(const MomentTile<N>& tile, int e, int m,
                                                   bool alternate, N (&by_unit)[3]) {
  using T = ValueOf<N>;
  const EdgeVector<N>& d = tile.edge[e].d;
  const N* row = tile.adjoint + e * tile.chunks * chunk_slots;
  N re, im;  // of (x + i y)^(m - 1)
  complex_power(d.u[0], d.u[1], m > 0 ? m - 1 : 0, &re, &im);
  const N x = d.u[0] * re - d.u[1] * im, y = d.u[0] * im + d.u[1] * re;  // of the power m
#pragma unroll
  for (int k = 0; k < 3; ++k) by_unit[k] = constant<N>(0);
  N now = constant<N>(double_factorial<T>(m)), before = constant<N>(0);
  N slope = constant<N>(0), slope_before = constant<N>(0);
  for (int l = m; l < tile.orders; ++l) {
    const N* slots = row + chunks_before(l) * chunk_slots;
    const T norm = tile.norm[l * tile.orders + m] * T(alternate && l % 2 ? -1 : 1);
    if (m == 0) {
      by_unit[2] += (slots[0] * slope) * norm;
    } else {
      const N real = slots[2 * m - 1] * norm, imaginary = slots[2 * m] * norm;
      const N scaled = now * T(m);
      by_unit[0] += scaled * (real * re + imaginary * im);
      by_unit[1] += scaled * (imaginary * re - real * im);
      by_unit[2] += slope * (real * x + imaginary * y);
    }
    const T inverse = tile.inverse[min(l + 1 - m, tile.orders - 1)];  // the last is not used
    const T rise = T(2 * l + 1) * inverse, fall = T(l + m) * inverse;
    const N next_slope = (now + d.u[2] * slope) * rise - slope_before * fall;
    const N next = (d.u[2] * now) * rise - before * fall;
    slope_before = slope;
    slope = next_slope;
    before = now;
    now = next;
  }
}

// gv of `count` edges from the adjoint harmonics and, if `pairs`, from the excluded pairs. Uses the
// room of the messages.
template <typename N>
__device__ __forceinline__ void add_vectors(const MomentTile<N>& tile, int count, bool alternate,
                                            bool pairs, ValueOf<N>* gv, bool start) {
  N* parts = tile.messages;  // [edges, orders, 3]
  __syncthreads();
  for (int item = threadIdx.x; item < count * tile.orders; item += blockDim.x) {
    N part[3];
    harmonics_backward(tile, item / tile.orders, item % tile.orders, alternate, part);
#pragma unroll
    for (int k = 0; k < 3; ++k) parts[3 * item + k] = part[k];
  }
  __syncthreads();
  const int e = threadIdx.x;
  if (e >= count) return;
  N sum[3];
#pragma unroll
  for (int k = 0; k < 3; ++k) sum[k] = pairs ? tile.pairs[e * tile.padded + k] : constant<N>(0);
  for (int m = 0; m < tile.orders; ++m)
#pragma unroll
    for (int k = 0; k < 3; ++k) sum[k] += parts[3 * (e * tile.orders + m) + k];
  through_unit_vector(tile.edge[e].d, sum);
  ValueOf<N>* row = gv + 3 * int64_t{tile.edge[e].edge};
#pragma unroll
  for (int k = 0; k < 3; ++k) row[k] = start ? result_of(sum[k]) : row[k] + result_of(sum[k]);
}

// messages[e, 0, f] = g[e, f] of outgoing edges.
template <bool packed, typename N>
__device__ __forceinline__ void fill_cotangents(const TripletArguments<N>& in,
                                                const MomentTile<N>& tile, MomentPass pass,
                                                int count, int first_f, const ValueOf<N>* g) {
  constexpr int width = row_numbers<N>;
  const int lane = threadIdx.x % moment_lanes, e = threadIdx.x / moment_lanes;
  if (e >= count) return;
  const int64_t rows = in.form.weighted ? 1 : in.form.channels;
  const auto part =
      load_part<packed, width>(g + (tile.edge[e].edge * rows + pass.first) * in.form.features,
                               first_f + lane * width, in.form.features);
  N numbers[width];
#pragma unroll
  for (int k = 0; k < width; ++k) numbers[k] = constant<N>(part.value[k]);
  write_numbers(tile.messages + e * tile.orders * tile.row + lane * width, numbers);
}

// What a group of lanes holds of an incoming edge.
template <typename N>
struct IncomingRow {
  int e, lane, f;
  bool there;
  N x[row_numbers<N>];
  ValueOf<N> gx[row_numbers<N>];
};

// gq[edge, l, first_t + t] for t = 0 ... 7, of which each pair of lanes has one.
template <typename N>
__device__ __forceinline__ ValueOf<N>* radial_place(const TripletArguments<N>& in,
                                                    const MomentTile<N>& tile, MomentPass pass,
                                                    ValueOf<N>* gq, int64_t edge, int first_t,
                                                    int lane) {
  const int t = first_t + lane / 2;
  if (lane % 2 || t >= pass.count) return nullptr;
  return gq + edge * tile.orders * in.form.channels + pass.first + t;
}

// gq and gx of an incoming edge but for the excluded pair. Leaves x sum over channels of q w in the
// messages, which held the sum.
template <typename N>
__device__ __forceinline__ void incoming_gradient(const TripletArguments<N>& in,
                                                  const MomentTile<N>& tile, MomentPass pass,
                                                  IncomingRow<N>& own, ValueOf<N>* gq, bool start) {
  constexpr int width = row_numbers<N>;
  const int64_t edge = own.there ? tile.edge[own.e].edge : 0;
  for (int l = 0; l < tile.orders; ++l) {
    N sum[width], message[width];
#pragma unroll
    for (int k = 0; k < width; ++k) sum[k] = message[k] = constant<N>(0);
    N* place = tile.messages + (own.e * tile.orders + l) * tile.row + own.lane * width;
    if (own.there) {
      contract_moments(tile, own.e, chunks_before(l), chunks_before(l + 1), own.lane, sum);
      read_numbers(place, message);
    }
#pragma unroll
    for (int k = 0; k < width; ++k) {
      own.gx[k] += result_of(N(message[k] * sum[k]));
      message[k] = message[k] * own.x[k];
      sum[k] = sum[k] * own.x[k];
    }
    if (own.there) write_numbers(place, message);
    for (int first_t = 0; first_t < pass.count; first_t += tile_channels) {
      N products[tile_channels];
#pragma unroll
      for (int t = 0; t < tile_channels; ++t) {
        N w[width];
        read_numbers(tile.weights + (first_t + t) * tile.row + own.lane * width, w);
        products[t] = constant<N>(0);
#pragma unroll
        for (int k = 0; k < width; ++k) products[t] += w[k] * sum[k];
      }
      const N total = sum_eight(products, own.lane, moment_lanes);
      ValueOf<N>* q = radial_place(in, tile, pass, gq, edge, first_t, own.lane);
      if (!q || !own.there) continue;
      q += int64_t{l} * in.form.channels;
      *q = start ? result_of(total) : *q + result_of(total);
    }
  }
}

template <typename N>
__device__ __forceinline__ N from_lane(N x, int source) {
  if constexpr (NumberTraits<N>::dual)
    return {__shfl_sync(full_warp, x.value, source), __shfl_sync(full_warp, x.slope, source)};
  else
    return __shfl_sync(full_warp, x, source);
}

// Takes the pair of an incoming edge and the outgoing edge `b` (-1: none, but exchange numbers)
// away from the gradients; returns the derivative by the cosine, `pair` has the angle.
template <bool packed, typename N>
__device__ __forceinline__ void exclude_pair(const TripletArguments<N>& in,
                                             const MomentTile<N>& tile, MomentPass pass,
                                             IncomingRow<N>& own, int64_t b, const ValueOf<N>* g,
                                             const TripletGradients<ValueOf<N>>& out,
                                             N (&by_unit)[3]) {
  using T = ValueOf<N>;
  constexpr int width = row_numbers<N>;
  const int features = in.form.features, channels = in.form.channels;
  const int64_t edge = own.there ? tile.edge[own.e].edge : 0;
  const EdgeVector<N> outgoing = edge_vector(in.v, b < 0 ? 0 : b);
  const PairAngle<N> pair(in.form.angle, tile.edge[own.there ? own.e : 0].d, outgoing);
  RowPart<T, width> cotangent = {};
  if (b >= 0)
    cotangent = load_part<packed, width>(
        g + (b * (in.form.weighted ? 1 : channels) + pass.first) * features, own.f, features);
  N by_cosine = constant<N>(0);
  for (int first_t = 0; first_t < pass.count; first_t += tile_channels) {
    N products[tile_channels];
#pragma unroll
    for (int t = 0; t < tile_channels; ++t) {
      N w[width];
      read_numbers(tile.weights + (first_t + t) * tile.row + own.lane * width, w);
      products[t] = constant<N>(0);
#pragma unroll
      for (int k = 0; k < width; ++k) products[t] += (w[k] * own.x[k]) * cotangent.value[k];
    }
    const N product = sum_eight(products, own.lane, moment_lanes);  // of channel lane / 2
    const int t = first_t + own.lane / 2;
    T* gq = radial_place(in, tile, pass, out.q, edge, first_t, own.lane);
    N now = constant<N>(1), before = constant<N>(0), coefficient = constant<N>(0);
    N slope = constant<N>(0), slope_before = constant<N>(0);
    for (int l = 0; l < tile.orders; ++l) {
      const int64_t place = (edge * tile.orders + l) * channels + pass.first + t;
      const N q = b >= 0 && t < pass.count ? in.q[place] : constant<N>(0);
      if (b >= 0 && gq) gq[int64_t{l} * channels] -= result_of(N(now * product));
      coefficient += q * now;
      by_cosine += (slope * q) * product;
      const N next_slope = now * T(2 * l + 1) + slope_before;
      slope_before = slope;
      slope = next_slope;
      const T inverse = T(1) / T(l + 1);
      const N next = (pair.c * now) * (T(2 * l + 1) * inverse) - before * (T(l) * inverse);
      before = now;
      now = next;
    }
#pragma unroll
    for (int k = 0; k < tile_channels; ++k) {
      const N factor =
          from_lane(coefficient, (threadIdx.x % warp_lanes) / moment_lanes * moment_lanes + 2 * k);
      N w[width];
      read_numbers(tile.weights + (first_t + k) * tile.row + own.lane * width, w);
#pragma unroll
      for (int i = 0; i < width; ++i) own.gx[i] -= result_of(N(factor * w[i])) * cotangent.value[i];
    }
  }
  by_cosine = sum_numbers(by_cosine, 2, moment_lanes);
  N by_outgoing[3];
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    const N step = by_cosine * outgoing.u[k];
    by_unit[k] += in.form.angle == TripletAngle::kji ? step : -step;
    by_outgoing[k] = -(by_cosine * pair.direction[k]);
  }
  through_unit_vector(outgoing, by_outgoing);
  if (b >= 0 && own.lane == 0)
#pragma unroll
    for (int k = 0; k < 3; ++k) out.v_out[3 * b + k] += result_of(by_outgoing[k]);
}

// All outgoing edges whose excluded edge is the group's, in order: usually one.
template <bool packed, typename N>
__device__ __forceinline__ void exclude_pairs(const TripletArguments<N>& in,
                                              const MomentTile<N>& tile, MomentPass pass,
                                              EdgeRange outgoing, IncomingRow<N>& own,
                                              const ValueOf<N>* g,
                                              const TripletGradients<ValueOf<N>>& out) {
  N by_unit[3] = {constant<N>(0), constant<N>(0), constant<N>(0)};
  const int32_t wanted = own.there ? tile.edge[own.e].edge : -1;
  const int first_lane = threadIdx.x % warp_lanes / moment_lanes * moment_lanes;
  for (int first = 0; first < outgoing.count; first += moment_lanes) {
    int32_t edge = -1;
    if (first + own.lane < outgoing.count)
      edge =
          static_cast<int32_t>(in.graph.senders.edge(int64_t{outgoing.first} + first + own.lane));
    const bool match = own.there && edge >= 0 && in.graph.excluded[edge] == wanted;
    unsigned found = __ballot_sync(full_warp, match);
    while (found) {  // the whole warp, a match for each of its groups
      const unsigned mine = found >> first_lane & 0xffffu;
      const int source = first_lane + (mine ? __ffs(static_cast<int>(mine)) - 1 : 0);
      const int32_t taken = __shfl_sync(full_warp, edge, source);
      exclude_pair<packed>(in, tile, pass, own, mine ? taken : -1, g, out, by_unit);
      found &= ~__ballot_sync(full_warp, mine && own.lane + first_lane == source);
    }
  }
  if (own.there && own.lane == 0)
#pragma unroll
    for (int k = 0; k < 3; ++k) tile.pairs[own.e * tile.padded + k] = by_unit[k];
}

// The gradients by what the atom receives, given the moments of what it sends; an edge for every
// group of lanes.
template <bool packed, typename N>
__device__ __forceinline__ void write_incoming(const TripletArguments<N>& in,
                                               const MomentTile<N>& tile, MomentPass pass,
                                               EdgeRange outgoing, int count, int first_f,
                                               const ValueOf<N>* g,
                                               const TripletGradients<ValueOf<N>>& out,
                                               bool first_pass) {
  using T = ValueOf<N>;
  constexpr int width = row_numbers<N>;
  const int features = in.form.features;
  IncomingRow<N> own;
  own.e = threadIdx.x / moment_lanes;
  if (own.e >= tile.edges) return;  // whole warps
  own.lane = threadIdx.x % moment_lanes;
  own.f = first_f + own.lane * width;
  own.there = own.e < count;
  T* row = own.there ? out.x + int64_t{tile.edge[own.e].edge} * features : nullptr;
  RowPart<T, width> part = {};
  if (own.there && !first_pass) part = load_part<packed, width>(row, own.f, features);
#pragma unroll
  for (int k = 0; k < width; ++k) own.gx[k] = part.value[k];
  load_numbers<packed>(in.x, own.there ? int64_t{tile.edge[own.e].edge} * features : 0, own.f,
                       own.there ? features : 0, own.x);
  incoming_gradient(in, tile, pass, own, out.q, first_f == 0);
  exclude_pairs<packed>(in, tile, pass, outgoing, own, g, out);
  if (!own.there) return;
#pragma unroll
  for (int k = 0; k < width; ++k) part.value[k] = own.gx[k];
  store_part<packed>(row, own.f, features, part);
}

// A block for every atom; per tile of features: moments of what it receives, the gradient of what
// it sends by its vectors, moments of what it sends, the gradients of what it receives.
// Computes: per edge 8 L^2 F multiply-adds (twice those of the value for each role) and 3 P L F
// with weights, P passes of 8 L^2 F without. Must move: x, g, q and v (x and g twice), the
// gradients once.
template <typename N, bool packed>
__global__ void __launch_bounds__(moment_threads, 1)
    triplet_moment_gradients(TripletArguments<N> in, const ValueOf<N>* g,
                             TripletGradients<ValueOf<N>> out) {
  const MomentTile<N> tile(in.form);
  fill_tables(tile);
  const bool alternate = in.form.angle == TripletAngle::kji;
  for (int64_t atom = blockIdx.x; atom < in.graph.receivers.rows; atom += gridDim.x) {
    const EdgeRange incoming = row_of(in.graph.receivers, atom);
    const EdgeRange outgoing = row_of(in.graph.senders, atom);
    if (incoming.count < in.form.moments_from) continue;
    for (int first_f = 0; first_f < in.form.features; first_f += tile.row) {
      __syncthreads();
      fill_pass_weights(in, tile, first_f);
      for (int number = 0; number < moment_passes(in.form); ++number) {
        const MomentPass pass = moment_pass(in.form, number);
        const bool start = first_f == 0 && number == 0;
        __syncthreads();
        sum_moments<packed>(in, tile, incoming, pass, first_f);
        for (int done = 0; done < outgoing.count; done += tile.edges) {
          const int count = next_edges(in, tile, in.graph.senders, outgoing, done);
          fill_cotangents<packed>(in, tile, pass, count, first_f, g);
          __syncthreads();
          fill_adjoint(tile, count, 0);
          add_vectors(tile, count, alternate, false, out.v_out, start);
        }
        __syncthreads();
        clear_moments(tile);
        for (int done = 0; done < outgoing.count; done += tile.edges) {
          const int count = next_edges(in, tile, in.graph.senders, outgoing, done);
          fill_harmonics(tile, count, alternate);
          fill_cotangents<packed>(in, tile, pass, count, first_f, g);
          __syncthreads();
          add_moments(tile, count, 0);
        }
        for (int done = 0; done < incoming.count; done += tile.edges) {
          const int count = next_edges(in, tile, in.graph.receivers, incoming, done);
          fill_harmonics(tile, count, false);
          fill_messages<packed>(in, tile, pass, count, first_f, false);
          __syncthreads();
          write_incoming<packed>(in, tile, pass, outgoing, count, first_f, g, out, number == 0);
          __syncthreads();
          fill_adjoint(tile, count, tile.row);
          add_vectors(tile, count, false, true, out.v, start);
        }
      }
    }
  }
}

}  // namespace

template <typename N>
void moment_gradients(const TripletArguments<N>& in, const ValueOf<N>* g,
                      const TripletGradients<ValueOf<N>>& out, Stream stream) {
  using T = ValueOf<N>;
  const int64_t atoms = in.graph.receivers.rows;
  if (atoms == 0) return;
  const bool packed = rows_are_packed<T>(in.form.features, row_numbers<N>, in.x.values, in.x.slopes,
                                         g, static_cast<const T*>(out.x));
  const auto kernel =
      packed ? triplet_moment_gradients<N, true> : triplet_moment_gradients<N, false>;
  launch("triplet_moment_gradients", kernel,
         dim3(static_cast<unsigned>(std::min<int64_t>(atoms, 1 << 20))), dim3(moment_threads),
         MomentTile<N>::size(in.form), stream, in, g, out);
}

#define MOLKERN_INSTANTIATE(N)                                                     \
  template void moment_gradients<N>(const TripletArguments<N>&, const ValueOf<N>*, \
                                    const TripletGradients<ValueOf<N>>&, Stream);
MOLKERN_INSTANTIATE(float)
MOLKERN_INSTANTIATE(double)
MOLKERN_INSTANTIATE(Dual<float>)
MOLKERN_INSTANTIATE(Dual<double>)

}  // namespace molkern
