// The gradient of sums over triplets, pair by pair. A block owns an atom: it takes its incoming
// edges in chunks and for each its outgoing edges in groups. What a pair contributes to is always
// added by the same thread, in the same order.
#include "triplets/direct_device.cuh"

namespace molkern {
namespace {

constexpr int gradient_threads = 128;
constexpr int team_edges = 8;  // incoming edges of a team

// Arrays in shared memory, for a group of outgoing edges and a chunk of incoming ones.
template <typename N>
struct GradientTile {
  N *coefficients, *products;    // [outgoing_group, chunk, tile_channels] A; G = sum over f of g x
  N *cosines, *cosine_gradient;  // [outgoing_group, chunk] c; derivative by c
  N* weights;                    // [tile_channels, lanes, row_numbers]
  OutgoingEdge<N>* outgoing;
  LegendreStep<ValueOf<N>>* steps;

  __device__ __forceinline__ GradientTile(int chunk, int lanes, int orders) {
    SharedCutter cut{dynamic_shared<unsigned char>()};
    coefficients = cut.take<N>(outgoing_group * chunk * tile_channels);
    products = cut.take<N>(outgoing_group * chunk * tile_channels);
    weights = cut.take<N>(lanes * row_numbers<N> * tile_channels);
    cosines = cut.take<N>(outgoing_group * chunk);
    cosine_gradient = cut.take<N>(outgoing_group * chunk);
    outgoing = cut.take<OutgoingEdge<N>>(outgoing_group);
    steps = cut.take<LegendreStep<ValueOf<N>>>(orders);
  }
  static size_t size(int chunk, int lanes, int orders) {
    return 2 * shared_size<N>(outgoing_group * chunk * tile_channels) +
           shared_size<N>(lanes * row_numbers<N> * tile_channels) +
           2 * shared_size<N>(outgoing_group * chunk) +
           shared_size<OutgoingEdge<N>>(outgoing_group) +
           shared_size<LegendreStep<ValueOf<N>>>(orders);
  }
};

template <typename T>
__device__ __forceinline__ void add_to(T* sum, T x, bool start) {
  *sum = start ? x : *sum + x;
}

// One group and chunk, for a tile of channels and of features. Adds to the products and to gx:
// a team holds the features of eight incoming edges in registers. `start`: the first contribution
// to gx; `start_products`: to the products.
template <bool packed, typename N>
__device__ __forceinline__ void add_features(const TripletArguments<N>& in,
                                             const GradientTile<N>& shared,
                                             const PairTile<N>& pairs, const ValueOf<N>* g,
                                             ValueOf<N>* gx, int lanes, int first_p, int first_f,
                                             bool start, bool start_products) {
  using T = ValueOf<N>;
  constexpr int width = row_numbers<N>;
  const int lane = threadIdx.x % lanes, first_a = threadIdx.x / lanes * team_edges;
  // No lane may be missing where teams of a warp exchange numbers.
  const int team_of_warp = static_cast<int>(threadIdx.x) / warp_lanes * (warp_lanes / lanes);
  if (team_of_warp * team_edges >= pairs.count) return;
  const int features = in.form.features, f = first_f + lane * width;
  N x[team_edges][width];
  T sum[team_edges][width] = {};
#pragma unroll
  for (int a = 0; a < team_edges; ++a) {
    const bool there = first_a + a < pairs.count;
    load_numbers<packed>(in.x, int64_t{pairs.first + first_a + a} * features, f,
                         there ? features : 0, x[a]);
  }
  const int channels = min(in.form.channels - first_p, tile_channels);
  for (int b = 0; b < pairs.outgoing_count; ++b) {
    const int64_t edge = pairs.outgoing[b].edge;
    const T* row =
        in.form.weighted ? g + edge * features : g + (edge * in.form.channels + first_p) * features;
    RowPart<T, width> next = load_part<packed, width>(row, f, features);
    for (int t = 0; t < channels; ++t) {
      const RowPart<T, width> now = next;
      N cotangent[width];
      if (in.form.weighted) {
        read_weights(shared.weights, lanes * width, lane, t, cotangent);
#pragma unroll
        for (int k = 0; k < width; ++k) cotangent[k] = cotangent[k] * now.value[k];
      } else {
        if (t + 1 < channels)
          next = load_part<packed, width>(row + int64_t{t + 1} * features, f, features);
#pragma unroll
        for (int k = 0; k < width; ++k) cotangent[k] = constant<N>(now.value[k]);
      }
      const int place = (b * pairs.tile + first_a) * tile_channels + t;
      N product[team_edges];
#pragma unroll
      for (int a = 0; a < team_edges; ++a) {
        const N factor = shared.coefficients[place + a * tile_channels];
        product[a] = constant<N>(0);
#pragma unroll
        for (int k = 0; k < width; ++k) {
          product[a] += cotangent[k] * x[a][k];
          sum[a][k] += result_of(N(factor * cotangent[k]));
        }
      }
      const N total = sum_eight(product, lane, lanes);
      const int share = lanes / team_edges;
      if (lane % share == 0)
        add_to(shared.products + place + lane / share * tile_channels, total, start_products);
    }
  }
#pragma unroll
  for (int a = 0; a < team_edges; ++a) {
    if (first_a + a >= pairs.count) continue;
    T* row = gx + int64_t{pairs.first + first_a + a} * features;
    RowPart<T, width> part;
    if (!start) part = load_part<packed, width>(row, f, features);
#pragma unroll
    for (int k = 0; k < width; ++k) part.value[k] = start ? sum[a][k] : part.value[k] + sum[a][k];
    store_part<packed>(row, f, features, part);
  }
}

// From the products: the gradient by q, for two channels of an incoming edge per thread, and by the
// cosines.
template <typename N>
__device__ __forceinline__ void add_radial(const TripletArguments<N>& in,
                                           const GradientTile<N>& shared, const PairTile<N>& pairs,
                                           ValueOf<N>* gq, int first_p, bool start) {
  using T = ValueOf<N>;
  const int total = pairs.tile * channel_pairs;  // a multiple of 32
  for (int item = threadIdx.x; item < total; item += blockDim.x) {
    const int pair = item % channel_pairs, a = item / channel_pairs, p = first_p + 2 * pair;
    N c[outgoing_group], now[outgoing_group], before[outgoing_group];
    N slope[outgoing_group], slope_before[outgoing_group], by_cosine[outgoing_group];
    N product[outgoing_group][2];
#pragma unroll
    for (int b = 0; b < outgoing_group; ++b) {
      const int place = b * pairs.tile + a;
      const bool triplet = pairs.is_triplet(a, b);
      const N* row = shared.products + place * tile_channels + 2 * pair;
      c[b] = triplet ? shared.cosines[place] : constant<N>(0);
      product[b][0] = triplet && p < in.form.channels ? row[0] : constant<N>(0);
      product[b][1] = triplet && p + 1 < in.form.channels ? row[1] : constant<N>(0);
      now[b] = constant<N>(1);
      before[b] = slope[b] = slope_before[b] = by_cosine[b] = constant<N>(0);
    }
    const int orders = a < pairs.count ? in.form.orders : 0;
    for (int l = 0; l < orders; ++l) {
      N q[2];
      load_radial(in, pairs.first + a, l, p, q);
      const LegendreStep<T> step = shared.steps[l];
      T sum[2] = {};
#pragma unroll
      for (int b = 0; b < outgoing_group; ++b) {
        sum[0] += result_of(N(now[b] * product[b][0]));
        sum[1] += result_of(N(now[b] * product[b][1]));
        by_cosine[b] += slope[b] * (q[0] * product[b][0] + q[1] * product[b][1]);
        // P_{l+1}' = (2 l + 1) P_l + P_{l-1}'
        const N next_slope = now[b] * T(2 * l + 1) + slope_before[b];
        slope_before[b] = slope[b];
        slope[b] = next_slope;
        const N next = (c[b] * now[b]) * step.rise - before[b] * step.fall;
        before[b] = now[b];
        now[b] = next;
      }
      T* row = gq + (int64_t{pairs.first + a} * in.form.orders + l) * in.form.channels + p;
      if (p < in.form.channels) add_to(row, sum[0], start);
      if (p + 1 < in.form.channels) add_to(row + 1, sum[1], start);
    }
#pragma unroll
    for (int b = 0; b < outgoing_group; ++b) {
      const N sum = sum_numbers(by_cosine[b], 1, channel_pairs);
      if (pair == b) shared.cosine_gradient[b * pairs.tile + a] = sum;
    }
  }
}

// The derivative by c of one pair, taken on to the vectors: by the incoming edge's unit vector
// (at_i: its vector), and by the outgoing edge's unit vector and (at_i) its vector.
template <typename N>
struct PairGradient {
  N incoming[3], unit[3];
  __device__ __forceinline__ PairGradient(TripletAngle angle, const EdgeVector<N>& a,
                                          const EdgeVector<N>& b, N by_cosine) {
    const PairAngle<N> pair(angle, a, b);
    if (angle == TripletAngle::at_i) {
      const N scaled = by_cosine * pair.inverse;
#pragma unroll
      for (int k = 0; k < 3; ++k) incoming[k] = scaled * (b.u[k] - pair.c * pair.direction[k]);
    } else {
      const N signed_by = angle == TripletAngle::kji ? -by_cosine : by_cosine;
#pragma unroll
      for (int k = 0; k < 3; ++k) incoming[k] = signed_by * b.u[k];
    }
#pragma unroll
    for (int k = 0; k < 3; ++k) unit[k] = by_cosine * pair.direction[k];
  }
};

// The gradient by the incoming edges' vectors: a thread for each.
template <typename N>
__device__ __forceinline__ void add_incoming_vectors(const TripletArguments<N>& in,
                                                     const GradientTile<N>& shared,
                                                     const PairTile<N>& pairs, ValueOf<N>* gv,
                                                     bool start) {
  for (int a = threadIdx.x; a < pairs.count; a += blockDim.x) {
    const EdgeVector<N> vector = edge_vector(in.v, pairs.first + a);
    N sum[3] = {constant<N>(0), constant<N>(0), constant<N>(0)};
    for (int b = 0; b < pairs.outgoing_count; ++b) {
      if (!pairs.is_triplet(a, b)) continue;
      const PairGradient<N> pair(in.form.angle, vector, pairs.outgoing[b].d,
                                 shared.cosine_gradient[b * pairs.tile + a]);
#pragma unroll
      for (int k = 0; k < 3; ++k) sum[k] += pair.incoming[k];
    }
    if (in.form.angle != TripletAngle::at_i) through_unit_vector(vector, sum);
#pragma unroll
    for (int k = 0; k < 3; ++k)
      add_to(gv + 3 * int64_t{pairs.first + a} + k, result_of(sum[k]), start);
  }
}

// And by the outgoing edges': a warp for each.
template <typename N>
__device__ __forceinline__ void add_outgoing_vectors(const TripletArguments<N>& in,
                                                     const GradientTile<N>& shared,
                                                     const PairTile<N>& pairs, ValueOf<N>* gv_out,
                                                     bool start) {
  const int lane = threadIdx.x % warp_lanes;
  for (int b = threadIdx.x / warp_lanes; b < pairs.outgoing_count; b += blockDim.x / warp_lanes) {
    const OutgoingEdge<N>& outgoing = pairs.outgoing[b];
    N unit[3] = {constant<N>(0), constant<N>(0), constant<N>(0)};
    N vector[3] = {constant<N>(0), constant<N>(0), constant<N>(0)};
    for (int a = lane; a < pairs.count; a += warp_lanes) {
      if (!pairs.is_triplet(a, b)) continue;
      const PairGradient<N> pair(in.form.angle, edge_vector(in.v, pairs.first + a), outgoing.d,
                                 shared.cosine_gradient[b * pairs.tile + a]);
#pragma unroll
      for (int k = 0; k < 3; ++k) {
        unit[k] += pair.unit[k];
        vector[k] += pair.incoming[k];
      }
    }
#pragma unroll
    for (int k = 0; k < 3; ++k) unit[k] = sum_numbers(unit[k], 1, warp_lanes);
    through_unit_vector(outgoing.d, unit);
    if (in.form.angle == TripletAngle::at_i) {
#pragma unroll
      for (int k = 0; k < 3; ++k) unit[k] += sum_numbers(vector[k], 1, warp_lanes);
    }
    if (lane == 0)
#pragma unroll
      for (int k = 0; k < 3; ++k)
        add_to(gv_out + 3 * int64_t{outgoing.edge} + k, result_of(unit[k]), start);
  }
}

// One group of outgoing edges and one chunk of incoming ones.
template <bool packed, typename N>
__device__ __forceinline__ void add_pairs(const TripletArguments<N>& in,
                                          const GradientTile<N>& shared, const PairTile<N>& pairs,
                                          const ValueOf<N>* g,
                                          const TripletGradients<ValueOf<N>>& out, int lanes,
                                          bool first_outgoing, bool first_incoming) {
  const int row = lanes * row_numbers<N>;
  fill_cosines(in, pairs, shared.cosines);
  for (int first_p = 0; first_p < in.form.channels; first_p += tile_channels) {
    __syncthreads();
    fill_coefficients(in, pairs, first_p, shared.cosines, shared.steps, shared.coefficients);
    for (int first_f = 0; first_f < in.form.features; first_f += row) {
      if (first_f > 0) __syncthreads();
      if (in.form.weighted) fill_weights(in, first_p, first_f, row, shared.weights);
      __syncthreads();
      add_features<packed>(in, shared, pairs, g, out.x, lanes, first_p, first_f,
                           first_outgoing && first_p == 0, first_f == 0);
    }
    __syncthreads();
    add_radial(in, shared, pairs, out.q, first_p, first_outgoing);
    __syncthreads();
    add_incoming_vectors(in, shared, pairs, out.v, first_outgoing && first_p == 0);
    add_outgoing_vectors(in, shared, pairs, out.v_out, first_incoming && first_p == 0);
  }
}

// Zeros for the incoming edges of an atom that sends nothing, and for the outgoing edges of one
// that receives nothing.
template <typename T>
__device__ __forceinline__ void write_no_gradients(const TripletForm& form,
                                                   const TripletGraph& graph, EdgeRange incoming,
                                                   EdgeRange outgoing,
                                                   const TripletGradients<T>& out) {
  const auto clear_rows = [&](T* rows, int64_t length) {
    for (int64_t k = threadIdx.x; k < length * incoming.count; k += blockDim.x)
      rows[incoming.first * length + k] = T(0);
  };
  if (outgoing.count == 0) {
    clear_rows(out.x, form.features);
    clear_rows(out.q, int64_t{form.orders} * form.channels);
    clear_rows(out.v, 3);
  }
  if (incoming.count == 0)
    for (int k = threadIdx.x; k < 3 * outgoing.count; k += blockDim.x)
      out.v_out[3 * graph.senders.edge(outgoing.first + k / 3) + k % 3] = T(0);
}

// A block for every atom, a team of lanes for eight of its incoming edges.
// Computes: per pair of edges 2 P F multiply-adds (three times that in dual numbers), 2 P more for
// sums over lanes, and about 60 P L / 8 for coefficients, polynomials and their slopes. Must move:
// g, x, q and v once, the gradients once. g is read again for every chunk of incoming edges, gx and
// gq for every group of outgoing ones (from L1 and L2).
template <typename N, bool packed>
__global__ void __launch_bounds__(gradient_threads, 1)
    triplet_direct_gradients(TripletArguments<N> in, const ValueOf<N>* g,
                             TripletGradients<ValueOf<N>> out, int lanes) {
  const int chunk = blockDim.x / lanes * team_edges;
  const GradientTile<N> shared(chunk, lanes, in.form.orders);
  fill_legendre_steps(shared.steps, in.form.orders);
  for (int64_t atom = blockIdx.x; atom < in.graph.receivers.rows; atom += gridDim.x) {
    const EdgeRange incoming = row_of(in.graph.receivers, atom);
    const EdgeRange outgoing = row_of(in.graph.senders, atom);
    if (incoming.count >= in.form.moments_from) continue;
    write_no_gradients(in.form, in.graph, incoming, outgoing, out);
    for (int first_a = 0; first_a < incoming.count; first_a += chunk)
      for (int first_b = 0; first_b < outgoing.count; first_b += outgoing_group) {
        __syncthreads();
        const int count = min(outgoing.count - first_b, outgoing_group);
        for (int b = threadIdx.x; b < count; b += blockDim.x)
          fetch_outgoing(in, int64_t{outgoing.first} + first_b + b, shared.outgoing[b]);
        __syncthreads();
        const PairTile<N> pairs{shared.outgoing,
                                count,
                                1,
                                incoming.first + first_a,
                                min(incoming.count - first_a, chunk),
                                chunk};
        add_pairs<packed>(in, shared, pairs, g, out, lanes, first_b == 0, first_a == 0);
      }
  }
}

}  // namespace

template <typename N>
void direct_gradients(const TripletArguments<N>& in, const ValueOf<N>* g,
                      const TripletGradients<ValueOf<N>>& out, Stream stream) {
  using T = ValueOf<N>;
  constexpr int width = row_numbers<N>;
  const int64_t atoms = in.graph.receivers.rows;
  if (atoms == 0) return;
  // Two doubles take so much shared memory that a team has a warp.
  const int least = sizeof(N) == 16 ? warp_lanes : 16;
  const int lanes = std::max(row_shape(in.form.features, width).lanes, least);
  // A smaller block where most atoms leave half of a large one idle.
  const bool few = in.graph.edges / atoms <= gradient_threads / 2 / lanes * team_edges;
  const int threads = few ? gradient_threads / 2 : gradient_threads;
  const bool packed = rows_are_packed<T>(in.form.features, width, in.x.values, in.x.slopes, g,
                                         static_cast<const T*>(out.x));
  const auto kernel =
      packed ? triplet_direct_gradients<N, true> : triplet_direct_gradients<N, false>;
  launch("triplet_direct_gradients", kernel,
         dim3(static_cast<unsigned>(std::min<int64_t>(atoms, 1 << 20))), dim3(threads),
         GradientTile<N>::size(threads / lanes * team_edges, lanes, in.form.orders), stream, in, g,
         out, lanes);
}

#define MOLKERN_INSTANTIATE(N)                                                     \
  template void direct_gradients<N>(const TripletArguments<N>&, const ValueOf<N>*, \
                                    const TripletGradients<ValueOf<N>>&, Stream);
MOLKERN_INSTANTIATE(float)
MOLKERN_INSTANTIATE(double)
MOLKERN_INSTANTIATE(Dual<float>)
MOLKERN_INSTANTIATE(Dual<double>)

}  // namespace molkern
