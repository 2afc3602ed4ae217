// Sums over triplets pair by pair: the value, and the gradient by the weights, which is a sum of
// the same terms.
#include "triplets/direct_device.cuh"

namespace molkern {
namespace {

constexpr int value_tile = 32;  // incoming edges whose coefficients lie in shared memory
constexpr int most_value_threads = 256;
constexpr int weight_threads = 256;
constexpr int weight_tile = 16;

// Arrays in shared memory for `teams` outgoing edges at a time. A team has `lanes` threads.
template <typename N>
struct ValueTile {
  N *coefficients, *weights, *cosines;
  OutgoingEdge<N>* outgoing;
  LegendreStep<ValueOf<N>>* steps;

  __device__ __forceinline__ ValueTile(int teams, int tile, int lanes, int orders) {
    SharedCutter cut{dynamic_shared<unsigned char>()};
    coefficients = cut.take<N>(teams * tile * tile_channels);
    weights = cut.take<N>(lanes * row_numbers<N> * tile_channels);
    cosines = cut.take<N>(teams * tile);
    outgoing = cut.take<OutgoingEdge<N>>(teams);
    steps = cut.take<LegendreStep<ValueOf<N>>>(orders);
  }
  static size_t size(int teams, int tile, int lanes, int orders) {
    return shared_size<N>(teams * tile * tile_channels) +
           shared_size<N>(lanes * row_numbers<N> * tile_channels) + shared_size<N>(teams * tile) +
           shared_size<OutgoingEdge<N>>(teams) + shared_size<LegendreStep<ValueOf<N>>>(orders);
  }
};

// Adds A x of the tile's incoming edges for the outgoing edge of a team.
template <bool packed, typename N>
__device__ __forceinline__ void add_incoming(const TripletArguments<N>& in,
                                             const PairTile<N>& pairs, const N* coefficients, int f,
                                             N (&sum)[tile_channels][row_numbers<N>]) {
  constexpr int width = row_numbers<N>;
  const int features = in.form.features;
  const int64_t row = int64_t{pairs.first} * features;
#pragma unroll 2
  for (int a = 0; a < pairs.count; ++a) {
    N x[width], factors[tile_channels];
    load_numbers<packed>(in.x, row + int64_t{a} * features, f, features, x);
    read_coefficients(coefficients + a * tile_channels, factors);
#pragma unroll
    for (int t = 0; t < tile_channels; ++t)
#pragma unroll
      for (int k = 0; k < width; ++k) sum[t][k] += factors[t] * x[k];
  }
}

// y[b, p, f] for the outgoing edges of the teams, a tile of channels and the features of a thread.
// All threads of the block call it.
template <bool packed, typename N>
__device__ __forceinline__ void sum_incoming(const TripletArguments<N>& in,
                                             const ValueTile<N>& shared, PairTile<N> pairs,
                                             EdgeRange incoming, int first_p, int team, int f,
                                             N (&sum)[tile_channels][row_numbers<N>]) {
#pragma unroll
  for (int t = 0; t < tile_channels; ++t)
#pragma unroll
    for (int k = 0; k < row_numbers<N>; ++k) sum[t][k] = constant<N>(0);
  for (int done = 0; done < incoming.count; done += pairs.tile) {
    pairs.first = incoming.first + done;
    pairs.count = min(incoming.count - done, pairs.tile);
    fill_cosines(in, pairs, shared.cosines);
    __syncthreads();  // nobody reads the coefficients of the tile before any more
    fill_coefficients(in, pairs, first_p, shared.cosines, shared.steps, shared.coefficients);
    __syncthreads();
    if (team < pairs.outgoing_count)
      add_incoming<packed>(in, pairs, shared.coefficients + team * pairs.tile * tile_channels, f,
                           sum);
  }
}

// Fetches the outgoing edges first ... first + teams of an atom.
template <typename N>
__device__ __forceinline__ PairTile<N> next_outgoing(const TripletArguments<N>& in,
                                                     const ValueTile<N>& shared, EdgeRange outgoing,
                                                     int first, int teams, int tile) {
  const int count = min(outgoing.count - first, teams);
  __syncthreads();
  for (int b = threadIdx.x; b < count; b += blockDim.x)
    fetch_outgoing(in, int64_t{outgoing.first} + first + b, shared.outgoing[b]);
  __syncthreads();
  return {shared.outgoing, count, teams / outgoing_group, 0, 0, tile};
}

// y: a block for every atom, a team for every outgoing edge, features over its lanes.
// Computes: per pair of edges P F multiply-adds, and about 30 P L / 8 for its coefficients. Must
// move: x, q and v once (a block reads its atom's again from L1 for every team), y once.
template <typename N, bool packed>
__global__ void __launch_bounds__(most_value_threads, 1)
    triplet_direct_values(TripletArguments<N> in, ValueOf<N>* y, int lanes) {
  using T = ValueOf<N>;
  constexpr int width = row_numbers<N>;
  const int teams = blockDim.x / lanes, team = threadIdx.x / lanes, lane = threadIdx.x % lanes;
  const int features = in.form.features, channels = in.form.channels, row = lanes * width;
  const bool weighted = in.form.weighted, one_tile = channels <= tile_channels && features <= row;
  const ValueTile<N> shared(teams, value_tile, lanes, in.form.orders);
  fill_legendre_steps(shared.steps, in.form.orders);
  if (weighted && one_tile) fill_weights(in, 0, 0, row, shared.weights);
  for (int64_t atom = blockIdx.x; atom < in.graph.receivers.rows; atom += gridDim.x) {
    const EdgeRange incoming = row_of(in.graph.receivers, atom);
    const EdgeRange outgoing = row_of(in.graph.senders, atom);
    if (incoming.count >= in.form.moments_from) continue;
    for (int first = 0; first < outgoing.count; first += teams) {
      const PairTile<N> pairs = next_outgoing(in, shared, outgoing, first, teams, value_tile);
      const int64_t edge = team < pairs.outgoing_count ? shared.outgoing[team].edge : -1;
      for (int first_f = 0; first_f < features; first_f += row) {
        const int f = first_f + lane * width;
        N total[width];
#pragma unroll
        for (int k = 0; k < width; ++k) total[k] = constant<N>(0);
        for (int first_p = 0; first_p < channels; first_p += tile_channels) {
          if (weighted && !one_tile) {
            __syncthreads();
            fill_weights(in, first_p, first_f, row, shared.weights);
            __syncthreads();
          }
          N sum[tile_channels][width];
          sum_incoming<packed>(in, shared, pairs, incoming, first_p, team, f, sum);
#pragma unroll
          for (int t = 0; t < tile_channels; ++t) {
            if (weighted) {
              N w[width];
              read_weights(shared.weights, row, lane, t, w);
#pragma unroll
              for (int k = 0; k < width; ++k) total[k] += sum[t][k] * w[k];
            } else if (edge >= 0 && first_p + t < channels) {
              RowPart<T, width> part;
#pragma unroll
              for (int k = 0; k < width; ++k) part.value[k] = result_of(sum[t][k]);
              store_part<packed>(y + (edge * channels + first_p + t) * features, f, features, part);
            }
          }
        }
        if (weighted && edge >= 0) {
          RowPart<T, width> part;
#pragma unroll
          for (int k = 0; k < width; ++k) part.value[k] = result_of(total[k]);
          store_part<packed>(y + edge * features, f, features, part);
        }
      }
    }
  }
}

// parts[block, f, p] = sum over the outgoing edges b of the block's atoms of g[b, f] y[b, p, f]: a
// block for a share of atoms and a tile of features and channels.
// Computes and moves what the value does, and g once.
template <typename N, bool packed>
__global__ void __launch_bounds__(weight_threads, 1)
    triplet_weight_parts(TripletArguments<N> in, const ValueOf<N>* g, ValueOf<N>* parts,
                         int lanes) {
  using T = ValueOf<N>;
  constexpr int width = row_numbers<N>;
  const int teams = blockDim.x / lanes, team = threadIdx.x / lanes, lane = threadIdx.x % lanes;
  const int features = in.form.features, channels = in.form.channels;
  const int f = (blockIdx.y * lanes + lane) * width, first_p = blockIdx.z * tile_channels;
  const ValueTile<N> shared(teams, weight_tile, lanes, in.form.orders);
  fill_legendre_steps(shared.steps, in.form.orders);
  T own[tile_channels][width] = {};
  const int64_t atoms = in.graph.receivers.rows, last = atoms * (blockIdx.x + 1) / gridDim.x;
  for (int64_t atom = atoms * blockIdx.x / gridDim.x; atom < last; ++atom) {
    const EdgeRange incoming = row_of(in.graph.receivers, atom);
    const EdgeRange outgoing = row_of(in.graph.senders, atom);
    for (int first = 0; first < outgoing.count; first += teams) {
      const PairTile<N> pairs = next_outgoing(in, shared, outgoing, first, teams, weight_tile);
      N sum[tile_channels][width];
      sum_incoming<packed>(in, shared, pairs, incoming, first_p, team, f, sum);
      if (team >= pairs.outgoing_count) continue;
      const int64_t edge = shared.outgoing[team].edge;
      const auto cotangent = load_part<packed, width>(g + edge * features, f, features);
#pragma unroll
      for (int t = 0; t < tile_channels; ++t)
#pragma unroll
        for (int k = 0; k < width; ++k) own[t][k] += cotangent.value[k] * result_of(sum[t][k]);
    }
  }
  T* sums = reinterpret_cast<T*>(shared.coefficients);  // [teams, lanes, width]
#pragma unroll
  for (int t = 0; t < tile_channels; ++t) {
    __syncthreads();
#pragma unroll
    for (int k = 0; k < width; ++k) sums[threadIdx.x * width + k] = own[t][k];
    __syncthreads();
    for (int k = threadIdx.x; k < lanes * width; k += blockDim.x) {
      const int column = blockIdx.y * lanes * width + k;
      if (column >= features || first_p + t >= channels) continue;
      T total = 0;
      for (int m = 0; m < teams; ++m) total += sums[m * lanes * width + k];
      parts[(int64_t{blockIdx.x} * features + column) * channels + first_p + t] = total;
    }
  }
}

// sums[k] = sum over the parts, in order. Must move: the parts once.
template <typename T>
__global__ void __launch_bounds__(weight_threads)
    triplet_sum_parts(const T* __restrict__ parts, int count, int64_t size, T* __restrict__ sums) {
  const int64_t k = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (k >= size) return;
  double total = 0;
  for (int part = 0; part < count; ++part) total += parts[part * size + k];
  sums[k] = T(total);
}

// Lanes of a team: at least 16, so that a block has no more than a few.
int team_lanes(int features, int width, int most) {
  return std::max(row_shape(features, width, most).lanes, 16);
}

template <typename N>
bool packed_inputs(const TripletArguments<N>& in, const ValueOf<N>* other) {
  using T = ValueOf<N>;
  return rows_are_packed<T>(in.form.features, row_numbers<N>, in.x.values, in.x.slopes, other);
}

}  // namespace

template <typename N>
void direct_values(const TripletArguments<N>& in, ValueOf<N>* y, Stream stream) {
  const int64_t atoms = in.graph.receivers.rows;
  if (atoms == 0) return;
  const int lanes = team_lanes(in.form.features, row_numbers<N>, 64);
  const int threads = std::max(outgoing_group * lanes, 128);
  const auto kernel =
      packed_inputs(in, y) ? triplet_direct_values<N, true> : triplet_direct_values<N, false>;
  launch("triplet_direct_values", kernel,
         dim3(static_cast<unsigned>(std::min<int64_t>(atoms, 1 << 20))), dim3(threads),
         ValueTile<N>::size(threads / lanes, value_tile, lanes, in.form.orders), stream, in, y,
         lanes);
}

template <typename N>
void weight_gradients(const TripletArguments<N>& in, const ValueOf<N>* g, ValueOf<N>* parts,
                      ValueOf<N>* sums, Stream stream) {
  using T = ValueOf<N>;
  const int64_t atoms = in.graph.receivers.rows, blocks = triplet_weight_blocks(atoms);
  const int64_t size = int64_t{in.form.features} * in.form.channels;
  if (blocks > 0) {
    const int lanes = team_lanes(in.form.features, row_numbers<N>, 32);
    const auto kernel =
        packed_inputs(in, g) ? triplet_weight_parts<N, true> : triplet_weight_parts<N, false>;
    const dim3 grid(static_cast<unsigned>(blocks),
                    blocks_for(in.form.features, lanes * row_numbers<N>),
                    blocks_for(in.form.channels, tile_channels));
    launch("triplet_weight_parts", kernel, grid, dim3(weight_threads),
           ValueTile<N>::size(weight_threads / lanes, weight_tile, lanes, in.form.orders), stream,
           in, g, parts, lanes);
  }
  launch("triplet_sum_parts", triplet_sum_parts<T>, dim3(blocks_for(size, weight_threads)),
         dim3(weight_threads), 0, stream, static_cast<const T*>(parts), static_cast<int>(blocks),
         size, sums);
}

#define MOLKERN_INSTANTIATE(N)                                                                  \
  template void direct_values<N>(const TripletArguments<N>&, ValueOf<N>*, Stream);              \
  template void weight_gradients<N>(const TripletArguments<N>&, const ValueOf<N>*, ValueOf<N>*, \
                                    ValueOf<N>*, Stream);
MOLKERN_INSTANTIATE(float)
MOLKERN_INSTANTIATE(double)
MOLKERN_INSTANTIATE(Dual<float>)
MOLKERN_INSTANTIATE(Dual<double>)

}  // namespace molkern
