// What the triplet kernels share: numbers N (float, double or a dual of either) in memory, in warps
// and in shared memory, and the geometry of an edge and of a pair of edges. For *_cuda.cu only.
#pragma once

#include <algorithm>

#include "common/dual.h"
#include "common/launch.h"
#include "common/warp.h"
#include "triplets/triplets.h"

namespace molkern {

constexpr int tile_channels = 8;   // channels that are summed together; padded with zeros
constexpr int outgoing_group = 4;  // outgoing edges whose polynomials a thread carries along
constexpr int channel_pairs = tile_channels / 2;
template <typename N>
constexpr int row_numbers = 16 / static_cast<int>(sizeof(N));  // neighboring features of a thread

// Numbers read from outside: values, and slopes where N is dual.
template <typename N>
struct DeviceSource {
  using T = ValueOf<N>;
  const T* values;
  const T* slopes;

  __device__ __forceinline__ N operator[](int64_t i) const {
    if constexpr (NumberTraits<N>::dual)
      return {values[i], slopes[i]};
    else
      return values[i];
  }
};

template <typename N>
struct TripletArguments {
  TripletForm form;
  TripletGraph graph;
  DeviceSource<N> x, q, v, w;
};

// Cuts arrays out of the block's dynamic shared memory, every one aligned to 16 bytes.
struct SharedCutter {
  unsigned char* next;
  template <typename Item>
  __device__ __forceinline__ Item* take(int count) {
    Item* items = reinterpret_cast<Item*>(next);
    next += (count * sizeof(Item) + 15) / 16 * 16;
    return items;
  }
};
template <typename Item>
size_t shared_size(int count) {
  return (count * sizeof(Item) + 15) / 16 * 16;
}

// The two kinds of kernels. Each takes the atoms whose number of incoming edges is its own; the
// gradients write v and v_out apart.
template <typename N>
void direct_values(const TripletArguments<N>& in, ValueOf<N>* y, Stream stream);
template <typename N>
void direct_gradients(const TripletArguments<N>& in, const ValueOf<N>* g,
                      const TripletGradients<ValueOf<N>>& out, Stream stream);
template <typename N>
void moment_values(const TripletArguments<N>& in, ValueOf<N>* y, Stream stream);
template <typename N>
void moment_gradients(const TripletArguments<N>& in, const ValueOf<N>* g,
                      const TripletGradients<ValueOf<N>>& out, Stream stream);
// Whether the angle factorises and the moments fit in the shared memory that every device has.
template <typename N>
bool moments_fit(const TripletForm& form);
// The gradient by the weights, of all atoms and always pair by pair: parts
// [triplet_weight_blocks(atoms), F, P], then their sums.
template <typename N>
void weight_gradients(const TripletArguments<N>& in, const ValueOf<N>* g, ValueOf<N>* parts,
                      ValueOf<N>* sums, Stream stream);

// Edges first ... first + count.
struct EdgeRange {
  int32_t first, count;
};
__device__ __forceinline__ EdgeRange row_of(const Adjacency& graph, int64_t row) {
  const int32_t first = graph.row_ptr[row];
  return {first, graph.row_ptr[row + 1] - first};
}

// Neighboring numbers of a row, loaded and stored in one access where `packed` says that rows are
// aligned and full.
template <typename T, int width>
struct alignas(width * sizeof(T)) RowPart {
  T value[width];
};

template <bool packed, int width, typename T>
__device__ __forceinline__ RowPart<T, width> load_part(const T* row, int first, int count) {
  RowPart<T, width> part = {};
  if constexpr (packed) {
    if (first < count) part = *reinterpret_cast<const RowPart<T, width>*>(row + first);
  } else {
#pragma unroll
    for (int k = 0; k < width; ++k)
      if (first + k < count) part.value[k] = row[first + k];
  }
  return part;
}

template <bool packed, int width, typename T>
__device__ __forceinline__ void store_part(T* row, int first, int count,
                                           const RowPart<T, width>& part) {
  if constexpr (packed) {
    if (first < count) *reinterpret_cast<RowPart<T, width>*>(row + first) = part;
  } else {
#pragma unroll
    for (int k = 0; k < width; ++k)
      if (first + k < count) row[first + k] = part.value[k];
  }
}

template <bool packed, int width, typename N>
__device__ __forceinline__ void load_numbers(const DeviceSource<N>& source, int64_t row, int first,
                                             int count, N (&numbers)[width]) {
  const auto values = load_part<packed, width>(source.values + row, first, count);
  if constexpr (NumberTraits<N>::dual) {
    const auto slopes = load_part<packed, width>(source.slopes + row, first, count);
#pragma unroll
    for (int k = 0; k < width; ++k) numbers[k] = {values.value[k], slopes.value[k]};
  } else {
#pragma unroll
    for (int k = 0; k < width; ++k) numbers[k] = values.value[k];
  }
}

// Whether rows of `features` numbers can be read `width` at a time from all these addresses.
template <typename T, typename... Pointers>
bool rows_are_packed(int features, int width, const Pointers*... rows) {
  const bool aligned = ((reinterpret_cast<uintptr_t>(rows) % (width * sizeof(T)) == 0) && ...);
  return aligned && features % width == 0;
}

// Sums and exchanges of numbers in a warp.
template <typename T>
__device__ __forceinline__ T exchange_lanes(T x, int offset) {
  return __shfl_xor_sync(full_warp, x, offset);
}
template <typename T>
__device__ __forceinline__ Dual<T> exchange_lanes(Dual<T> x, int offset) {
  return {__shfl_xor_sync(full_warp, x.value, offset), __shfl_xor_sync(full_warp, x.slope, offset)};
}

template <typename N>
__device__ __forceinline__ N sum_numbers(N x, int step, int width) {
  for (int offset = step; offset < width; offset *= 2) x += exchange_lanes(x, offset);
  return x;
}

// Sums each of eight numbers over `lanes` neighboring lanes (8, 16 or 32): halves the numbers that
// a lane keeps three times, so that it ends with the sum of one, number lane / (lanes / 8).
template <typename N>
__device__ __forceinline__ N sum_eight(N (&x)[8], int lane, int lanes) {
  N four[4], two[2];
  int offset = lanes / 2;
  bool upper = lane & offset;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    four[i] = (upper ? x[i + 4] : x[i]) + exchange_lanes(upper ? x[i] : x[i + 4], offset);
  offset /= 2;
  upper = lane & offset;
#pragma unroll
  for (int i = 0; i < 2; ++i)
    two[i] =
        (upper ? four[i + 2] : four[i]) + exchange_lanes(upper ? four[i] : four[i + 2], offset);
  offset /= 2;
  upper = lane & offset;
  const N one = (upper ? two[1] : two[0]) + exchange_lanes(upper ? two[0] : two[1], offset);
  return sum_numbers(one, 1, offset);
}

template <typename T>
__device__ __forceinline__ T value_of(T x) {
  return x;
}
template <typename T>
__device__ __forceinline__ T value_of(Dual<T> x) {
  return x.value;
}

// 1 / sqrt(x), and 0 where a vector of that square counts as zero.
template <typename T>
__device__ __forceinline__ T inverse_root_of(T x) {
  return x < smallest_square<T> ? T(0) : T(1) / sqrt(x);
}
template <typename T>
__device__ __forceinline__ Dual<T> inverse_root_of(Dual<T> x) {
  const T root = inverse_root_of(x.value);
  return {root, (root * root) * (root * x.slope) * T(-0.5)};
}

template <typename N>
__device__ __forceinline__ N dot(const N (&a)[3], const N (&b)[3]) {
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}

// The unit vector of an edge, zero for an edge of length zero, and what its derivative needs.
template <typename N>
struct EdgeVector {
  N v[3], u[3], inverse_length;
};

template <typename N>
__device__ __forceinline__ EdgeVector<N> edge_vector(const DeviceSource<N>& vectors, int64_t edge) {
  EdgeVector<N> d;
#pragma unroll
  for (int k = 0; k < 3; ++k) d.v[k] = vectors[3 * edge + k];
  d.inverse_length = inverse_root_of(dot(d.v, d.v));
#pragma unroll
  for (int k = 0; k < 3; ++k) d.u[k] = d.v[k] * d.inverse_length;
  return d;
}

// Turns a derivative by the unit vector into one by the vector.
template <typename N>
__device__ __forceinline__ void through_unit_vector(const EdgeVector<N>& d, N (&g)[3]) {
  const N along = dot(g, d.u);
#pragma unroll
  for (int k = 0; k < 3; ++k) g[k] = (g[k] - along * d.u[k]) * d.inverse_length;
}

// An outgoing edge in shared memory.
template <typename N>
struct OutgoingEdge {
  EdgeVector<N> d;
  int32_t edge, excluded;
};

template <typename N>
__device__ __forceinline__ void fetch_outgoing(const TripletArguments<N>& in, int64_t entry,
                                               OutgoingEdge<N>& b) {
  b.edge = static_cast<int32_t>(in.graph.senders.edge(entry));
  b.excluded = in.graph.excluded[b.edge];
  b.d = edge_vector(in.v, b.edge);
}

// The cosine of the angle between an incoming and an outgoing edge: c = direction . u_b, where
// `direction` has length one.
template <typename N>
struct PairAngle {
  N direction[3], inverse, c;  // at_i: inverse is 1 / |v_a + v_b|

  __device__ __forceinline__ PairAngle(TripletAngle angle, const EdgeVector<N>& a,
                                       const EdgeVector<N>& b) {
    if (angle == TripletAngle::at_i) {
#pragma unroll
      for (int k = 0; k < 3; ++k) direction[k] = a.v[k] + b.v[k];
      inverse = inverse_root_of(dot(direction, direction));
#pragma unroll
      for (int k = 0; k < 3; ++k) direction[k] = direction[k] * inverse;
    } else {
      inverse = constant<N>(1);
#pragma unroll
      for (int k = 0; k < 3; ++k) direction[k] = angle == TripletAngle::kji ? -a.u[k] : a.u[k];
    }
    c = dot(direction, b.u);
  }
};

// One step of the recursion of Legendre polynomials, P_{l+1} = rise[l] c P_l - fall[l] P_{l-1}.
template <typename T>
struct LegendreStep {
  T rise, fall;
};

template <typename T>
__device__ __forceinline__ void fill_legendre_steps(LegendreStep<T>* steps, int orders) {
  for (int l = threadIdx.x; l < orders; l += blockDim.x)
    steps[l] = {T(2 * l + 1) / T(l + 1), T(l) / T(l + 1)};
}

}  // namespace molkern
