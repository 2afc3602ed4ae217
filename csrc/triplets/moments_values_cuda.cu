// Sums over triplets by moments: the value.
#include "triplets/moments_device.cuh"

namespace molkern {
namespace {

// The coefficients of the triplets that are no triplets: an outgoing edge and its reverse.
template <typename N>
__device__ __forceinline__ void fill_excluded(const TripletArguments<N>& in,
                                              const MomentTile<N>& tile, MomentPass pass,
                                              int count) {
  using T = ValueOf<N>;
  for (int item = threadIdx.x; item < count * pass.count; item += blockDim.x) {
    const int e = item / pass.count, t = item % pass.count;
    const OutgoingEdge<N>& b = tile.edge[e];
    N sum = constant<N>(0);
    if (b.excluded >= 0) {
      const N c = PairAngle<N>(in.form.angle, edge_vector(in.v, b.excluded), b.d).c;
      N now = constant<N>(1), before = constant<N>(0);
      for (int l = 0; l < tile.orders; ++l) {
        const int64_t row = (int64_t{b.excluded} * tile.orders + l) * in.form.channels;
        sum += in.q[row + pass.first + t] * now;
        const T inverse = T(1) / T(l + 1);
        const N next = (c * now) * (T(2 * l + 1) * inverse) - before * (T(l) * inverse);
        before = now;
        now = next;
      }
    }
    tile.pairs[e * tile.padded + t] = sum;
  }
}

// The row of y of one outgoing edge, a group for each.
template <bool packed, typename N>
__device__ __forceinline__ void write_value(const TripletArguments<N>& in,
                                            const MomentTile<N>& tile, MomentPass pass, int count,
                                            int first_f, ValueOf<N>* y) {
  constexpr int width = row_numbers<N>;
  const int lane = threadIdx.x % moment_lanes, e = threadIdx.x / moment_lanes;
  if (e >= count) return;
  const int features = in.form.features, f = first_f + lane * width;
  N sum[width], x[width];
#pragma unroll
  for (int k = 0; k < width; ++k) sum[k] = constant<N>(0);
  contract_moments(tile, e, 0, tile.chunks, lane, sum);
  const OutgoingEdge<N>& b = tile.edge[e];
  if (b.excluded >= 0) {
    load_numbers<packed>(in.x, int64_t{b.excluded} * features, f, features, x);
    for (int t = 0; t < pass.count; ++t) {
      const N factor = tile.pairs[e * tile.padded + t];
      N w[width];
      read_numbers(tile.weights + t * tile.row + lane * width, w);
#pragma unroll
      for (int k = 0; k < width; ++k) sum[k] -= (factor * w[k]) * x[k];
    }
  }
  RowPart<ValueOf<N>, width> part;
#pragma unroll
  for (int k = 0; k < width; ++k) part.value[k] = result_of(sum[k]);
  const int64_t rows = in.form.weighted ? 1 : in.form.channels;
  store_part<packed>(y + (b.edge * rows + pass.first) * features, f, features, part);
}

// y: a block for every atom; per tile of features, moments of what it receives, then a group of
// lanes for every outgoing edge.
// Computes: per edge 2 L^2 F multiply-adds and P L F for messages with weights, P passes of 2 L^2 F
// and L F without. Must move: x, q and v once (again for every pass), y once.
template <typename N, bool packed>
__global__ void __launch_bounds__(moment_threads, 1)
    triplet_moment_values(TripletArguments<N> in, ValueOf<N>* y) {
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
        __syncthreads();
        sum_moments<packed>(in, tile, incoming, pass, first_f);
        for (int done = 0; done < outgoing.count; done += tile.edges) {
          const int count = next_edges(in, tile, in.graph.senders, outgoing, done);
          fill_harmonics(tile, count, alternate);
          fill_excluded(in, tile, pass, count);
          __syncthreads();
          write_value<packed>(in, tile, pass, count, first_f, y);
        }
      }
    }
  }
}

}  // namespace

template <typename N>
bool moments_fit(const TripletForm& form) {
  return form.angle != TripletAngle::at_i && MomentTile<N>::size(form) <= 48 * 1024;
}

template <typename N>
void moment_values(const TripletArguments<N>& in, ValueOf<N>* y, Stream stream) {
  const int64_t atoms = in.graph.receivers.rows;
  if (atoms == 0) return;
  const bool packed =
      rows_are_packed<ValueOf<N>>(in.form.features, row_numbers<N>, in.x.values, in.x.slopes, y);
  const auto kernel = packed ? triplet_moment_values<N, true> : triplet_moment_values<N, false>;
  launch("triplet_moment_values", kernel,
         dim3(static_cast<unsigned>(std::min<int64_t>(atoms, 1 << 20))), dim3(moment_threads),
         MomentTile<N>::size(in.form), stream, in, y);
}

#define MOLKERN_INSTANTIATE(N)                      \
  template bool moments_fit<N>(const TripletForm&); \
  template void moment_values<N>(const TripletArguments<N>&, ValueOf<N>*, Stream);
MOLKERN_INSTANTIATE(float)
MOLKERN_INSTANTIATE(double)
MOLKERN_INSTANTIATE(Dual<float>)
MOLKERN_INSTANTIATE(Dual<double>)

}  // namespace molkern
