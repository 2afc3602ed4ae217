// One atom of the sum over triplets: its incoming edges in planes, and its angles.
#pragma once

#include <algorithm>

#include "triplets/numbers_cpu.h"
#include "triplets/triplets.h"

namespace molkern {
namespace {  // every instruction set has its own

// The arguments of a kernel in numbers N.
template <typename N>
struct TripletSources {
  Source<N> x, q, v, w;
};

constexpr int64_t channel_tile = 4;  // channels are padded to whole tiles

inline int64_t padded_to(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

// Writes the first numbers of a vector that lie in a row of `count`.
template <typename V>
MOLKERN_INLINE void store_in_row(Scalar<V>* row, int64_t f, int64_t count, V x) {
  constexpr int64_t lanes = sizeof(V) / sizeof(Scalar<V>);
  if (f + lanes <= count)
    store<V>(row + f, x);
  else
    __builtin_memcpy(row + f, &x, (count - f) * sizeof(Scalar<V>));
}

// The sizes that all kernels share, rounded up to whole vectors and tiles.
template <typename N>
struct TripletSizes {
  static constexpr int64_t lanes = sizeof(ValueOf<N>) / sizeof(Scalar<ValueOf<N>>);
  int64_t orders, channels, features;  // L, P, F
  int64_t padded_channels, padded_features;
  int64_t incoming;  // most edges that one atom receives, padded

  TripletSizes(const TripletForm& form, int64_t most_incoming)
      : orders(form.orders),
        channels(form.channels),
        features(form.features),
        padded_channels(padded_to(form.channels, channel_tile)),
        padded_features(padded_to(form.features, lanes)),
        incoming(std::max(padded_to(most_incoming, lanes), lanes)) {}
};

// The unit vector of an edge in one number per component, and what its derivative needs.
template <typename S>
struct EdgeDirection {
  S v[3], u[3], inverse_length;
};

template <typename N>
MOLKERN_INLINE EdgeDirection<Single<N>> edge_direction(const Source<N>& vectors, int64_t edge) {
  EdgeDirection<Single<N>> d;
  for (int k = 0; k < 3; ++k) d.v[k] = vectors[3 * edge + k];
  d.inverse_length = inverse_root(d.v[0] * d.v[0] + d.v[1] * d.v[1] + d.v[2] * d.v[2]);
  for (int k = 0; k < 3; ++k) d.u[k] = d.v[k] * d.inverse_length;
  return d;
}

// Turns a derivative by the unit vector into one by the vector.
template <typename S>
MOLKERN_INLINE void through_unit_vector(const EdgeDirection<S>& d, S g[3]) {
  const S along = g[0] * d.u[0] + g[1] * d.u[1] + g[2] * d.u[2];
  for (int k = 0; k < 3; ++k) g[k] = (g[k] - along * d.u[k]) * d.inverse_length;
}

// The edges that an atom receives, lanes over the edges.
template <typename N>
struct IncomingEdges {
  using V = ValueOf<N>;
  using T = Scalar<V>;
  static constexpr int64_t lanes = TripletSizes<N>::lanes;

  const TripletForm& form;
  TripletSizes<N> sizes;
  int64_t first = 0, count = 0, padded = 0;  // padded: count in whole vectors
  Planes<N> x;                               // [count, padded features]
  Planes<N> q;                               // [orders, padded channels, padded]
  Planes<N> u[3], v[3], inverse_length;      // [padded], zero beyond count

  IncomingEdges(const TripletForm& form, const TripletSizes<N>& sizes)
      : form(form),
        sizes(sizes),
        x(sizes.incoming * sizes.padded_features),
        q(sizes.orders * sizes.padded_channels * sizes.incoming),
        inverse_length(sizes.incoming) {
    for (int k = 0; k < 3; ++k) {
      u[k] = Planes<N>(sizes.incoming);
      v[k] = Planes<N>(sizes.incoming);
    }
  }

  void fetch(const TripletSources<N>& in, int64_t first_edge, int64_t edges) {
    first = first_edge;
    count = edges;
    padded = padded_to(edges, lanes);
    for (int k = 0; k < 3; ++k)
      if (count < padded) u[k].set(padded - lanes, N{}), v[k].set(padded - lanes, N{});
    for (int64_t a = 0; a < count; ++a) {
      const EdgeDirection<Single<N>> d = edge_direction(in.v, first + a);
      for (int k = 0; k < 3; ++k) u[k].set_one(a, d.u[k]), v[k].set_one(a, d.v[k]);
      inverse_length.set_one(a, d.inverse_length);
    }
    fetch_features(in.x);
    fetch_radial(in.q);
  }

  void fetch_features(Source<N> source) {
    const int64_t features = sizes.features, row = sizes.padded_features;
    const View<N> to = x.view();
    for (int64_t a = 0; a < count; ++a)
      for (int64_t f = 0; f < row; f += lanes)
        to.set(a * row + f, source.get((first + a) * features + f, features - f));
  }

  // Transposed, so that lanes run over the edges.
  void fetch_radial(Source<N> source) {
    const int64_t channels = sizes.channels, rows = sizes.orders * channels, edges = count;
    const View<N> to = q.view();
    to.clear(sizes.orders * sizes.padded_channels * padded);
    const int64_t step = padded, skipped = (sizes.padded_channels - channels) * padded;
    for (int64_t a = 0; a < edges; ++a) {
      int64_t from = (first + a) * rows, row = a;
      for (int64_t l = 0; l < sizes.orders; ++l, row += skipped)
        for (int64_t p = 0; p < channels; ++p, row += step) to.set_one(row, source[from++]);
    }
  }

  int64_t place(int64_t l, int64_t p) const { return (l * sizes.padded_channels + p) * padded; }

  EdgeDirection<Single<N>> direction(int64_t a) const {
    EdgeDirection<Single<N>> d;
    for (int k = 0; k < 3; ++k) d.u[k] = u[k].one(a), d.v[k] = v[k].one(a);
    d.inverse_length = inverse_length.one(a);
    return d;
  }
};

// The derivatives by what belongs to the incoming edges.
template <typename N>
struct IncomingGradient {
  using V = ValueOf<N>;
  using T = Scalar<V>;
  const IncomingEdges<N>& in;
  Planes<V> x, q;  // laid out as in IncomingEdges
  Planes<N> v[3];  // by the unit vectors, at_i: by the vectors

  explicit IncomingGradient(const IncomingEdges<N>& in)
      : in(in),
        x(in.sizes.incoming * in.sizes.padded_features),
        q(in.sizes.orders * in.sizes.padded_channels * in.sizes.incoming) {
    for (auto& g : v) g = Planes<N>(in.sizes.incoming);
  }

  void clear() {
    x.clear(in.count * in.sizes.padded_features);
    q.clear(in.sizes.orders * in.sizes.padded_channels * in.padded);
    for (auto& g : v) g.clear(in.padded);
  }

  void write(const TripletGradients<T>& out) const {
    const TripletSizes<N>& sizes = in.sizes;
    for (int64_t a = 0; a < in.count; ++a) {
      const int64_t edge = in.first + a;
      for (int64_t f = 0; f < sizes.features; f += TripletSizes<N>::lanes)
        store_in_row(out.x + edge * sizes.features, f, sizes.features,
                     x.get(a * sizes.padded_features + f));
      for (int64_t l = 0; l < sizes.orders; ++l)
        for (int64_t p = 0; p < sizes.channels; ++p)
          out.q[(edge * sizes.orders + l) * sizes.channels + p] = q.one(in.place(l, p) + a);
      Single<N> g[3];
      for (int k = 0; k < 3; ++k) g[k] = v[k].one(a);
      if (in.form.angle != TripletAngle::at_i) through_unit_vector(in.direction(a), g);
      for (int k = 0; k < 3; ++k) out.v[3 * edge + k] = result_of(g[k]);
    }
  }
};

// Angles between one outgoing edge and `lanes` incoming ones, and the way back from their cosines.
template <typename N>
struct Angle {
  using V = ValueOf<N>;
  N c;                 // cosines
  N unit[3], inverse;  // at_i: the direction from i to k, and 1 / its length
  N to_j[3];           // u_b in every lane
  TripletAngle convention;

  // `excluded` is the lane of the excluded edge, or another number.
  MOLKERN_INLINE Angle(const IncomingEdges<N>& in, int64_t a, const EdgeDirection<Single<N>>& b,
                       int64_t excluded)
      : convention(in.form.angle) {
    for (int k = 0; k < 3; ++k) to_j[k] = in_every_lane<N>(b.u[k]);
    if (convention == TripletAngle::at_i) {
      Bits<V> out{};
      if (excluded >= 0 && excluded < IncomingEdges<N>::lanes) out[excluded] = -1;
      for (int k = 0; k < 3; ++k) {
        unit[k] = in.v[k].get(a) + in_every_lane<N>(b.v[k]);
        unit[k] = choose(out, to_j[k], unit[k]);  // its own would be of length zero
      }
      inverse = inverse_root(unit[0] * unit[0] + unit[1] * unit[1] + unit[2] * unit[2]);
      for (int k = 0; k < 3; ++k) unit[k] = unit[k] * inverse;
    } else {
      for (int k = 0; k < 3; ++k) unit[k] = in.u[k].get(a);
    }
    c = unit[0] * to_j[0] + unit[1] * to_j[1] + unit[2] * to_j[2];
    if (convention == TripletAngle::kji) c = -c;
  }

  static MOLKERN_INLINE N choose(Bits<V> mask, N yes, N no) {
    if constexpr (NumberTraits<N>::dual)
      return {mask ? yes.value : no.value, mask ? yes.slope : no.slope};
    else
      return mask ? yes : no;
  }

  // Given the derivative by c: adds to the sums of the incoming edges (by their unit vectors, at_i:
  // by their vectors) and of the outgoing edge (by its unit vector, and by its vector).
  MOLKERN_INLINE void backward(N dc, Planes<N>* incoming, int64_t a, N* by_unit,
                               N* by_vector) const {
    if (convention == TripletAngle::kji) dc = -dc;
    if (convention == TripletAngle::at_i) {
      const N scaled = dc * inverse;
      for (int k = 0; k < 3; ++k) {
        const N g = scaled * (to_j[k] - c * unit[k]);
        incoming[k].set(a, incoming[k].get(a) + g);
        by_vector[k] += g;
        by_unit[k] += dc * unit[k];
      }
    } else {
      for (int k = 0; k < 3; ++k) {
        incoming[k].set(a, incoming[k].get(a) + dc * to_j[k]);
        by_unit[k] += dc * unit[k];
      }
    }
  }
};

}  // namespace
}  // namespace molkern
