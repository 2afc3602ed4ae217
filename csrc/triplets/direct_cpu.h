// The sum over the triplets of one atom as products of small matrices, see triplets.h.
#pragma once

#include "triplets/atom_cpu.h"

namespace molkern {
namespace {  // every instruction set has its own

template <typename N>
class DirectTriplets {
  using V = ValueOf<N>;
  using T = Scalar<V>;
  static constexpr int64_t lanes = TripletSizes<N>::lanes;
  static constexpr int64_t tile = channel_tile;

  const TripletForm& form_;
  TripletSizes<N> sizes_;
  const IncomingEdges<N>& in_;
  const Planes<N>& w_;    // [padded channels, padded features]
  Planes<N> p_, slope_;   // [orders, padded] Legendre polynomials and derivatives
  Planes<N> a_;           // [padded channels, padded] coefficients A
  Planes<N> transposed_;  // [features, padded] of x
  Planes<N> g_;           // [padded channels, padded features] cotangent of one outgoing edge
  Planes<N> product_;     // [padded channels, padded] G, the products of g and x

 public:
  DirectTriplets(const TripletForm& form, const TripletSizes<N>& sizes, const IncomingEdges<N>& in,
                 const Planes<N>& w, bool gradient)
      : form_(form), sizes_(sizes), in_(in), w_(w) {
    const int64_t edges = sizes.incoming, channels = sizes.padded_channels;
    p_ = Planes<N>(sizes.orders * edges);
    a_ = Planes<N>(channels * edges);
    if (!gradient) return;
    slope_ = Planes<N>(sizes.orders * edges);
    transposed_ = Planes<N>(sizes.features * edges);
    g_ = Planes<N>(channels * sizes.padded_features);
    product_ = Planes<N>(channels * edges);
  }

  // The row of y that belongs to the edge b; `excluded` counts from the first incoming edge.
  void value(const EdgeDirection<Single<N>>& b, int64_t excluded, T* y) {
    for (int64_t a = 0; a < in_.padded; a += lanes) {
      const Angle<N> angle(in_, a, b, excluded - a);
      legendre(angle.c, form_.orders, [&](int l, N p) { p_.set(l * in_.padded + a, p); });
      coefficients(a);
    }
    exclude(a_, excluded);
    if (form_.weighted)
      weighted_rows(y);
    else
      rows([&](int64_t p, int64_t f, N sum) {
        if (p < sizes_.channels)
          store_in_row(y + p * sizes_.features, f, sizes_.features, V(result_of(sum)));
      });
  }

  void begin_gradient() {
    const int64_t padded = in_.padded, row = sizes_.padded_features, count = in_.count;
    const View<N> from = in_.x.view(), to = transposed_.view();
    for (int64_t f = 0; f < sizes_.features && count > 0; ++f) {
      to.set((f + 1) * padded - lanes, N{});
      for (int64_t a = 0; a < count; ++a) to.set_one(f * padded + a, from.one(a * row + f));
    }
  }

  // Adds what one outgoing edge contributes; its own derivative goes to gv_b [3], that of the
  // weights to gw [padded channels, padded features] if it is wanted.
  void add_gradient(const EdgeDirection<Single<N>>& b, int64_t excluded, const T* g,
                    IncomingGradient<N>& sums, T* gv_b, Planes<V>* gw) {
    read_cotangent(g);
    products();
    exclude(product_, excluded);
    N by_unit[3] = {}, by_vector[3] = {};
    for (int64_t a = 0; a < in_.padded; a += lanes) {
      const Angle<N> angle(in_, a, b, excluded - a);
      legendre_slopes(angle.c, form_.orders, [&](int l, N p, N slope) {
        p_.set(l * in_.padded + a, p);
        slope_.set(l * in_.padded + a, slope);
      });
      coefficients(a);
      angle.backward(through_radial(a, sums.q), sums.v, a, by_unit, by_vector);
    }
    exclude(a_, excluded);
    add_to_features(sums.x);
    if (gw) add_to_weights(g, *gw);
    Single<N> total[3];
    for (int k = 0; k < 3; ++k) total[k] = sum_of_lanes(by_unit[k]);
    through_unit_vector(b, total);
    for (int k = 0; k < 3; ++k)
      gv_b[k] = result_of(Single<N>(total[k] + sum_of_lanes(by_vector[k])));
  }

 private:
  // A of `lanes` incoming edges.
  MOLKERN_INLINE void coefficients(int64_t a) const {
    const View<N> q = in_.q.view(), polynomials = p_.view(), to = a_.view();
    const int64_t padded = in_.padded, channels = sizes_.padded_channels, orders = sizes_.orders;
    for (int64_t p = 0; p < channels; p += tile) {
      N sum[tile] = {};
      for (int64_t l = 0; l < orders; ++l) {
        const N polynomial = polynomials.get(l * padded + a);
        const int64_t place = (l * channels + p) * padded + a;
        for (int64_t t = 0; t < tile; ++t) sum[t] += q.get(place + t * padded) * polynomial;
      }
      for (int64_t t = 0; t < tile; ++t) to.set((p + t) * padded + a, sum[t]);
    }
  }

  MOLKERN_INLINE void exclude(const Planes<N>& coefficients, int64_t a) const {
    if (a < 0) return;
    for (int64_t p = 0; p < sizes_.padded_channels; ++p)
      coefficients.set_one(p * in_.padded + a, Single<N>{});
  }

  // Sums over the incoming edges for a tile of channels and `wide` vectors of features.
  template <int wide>
  MOLKERN_INLINE void sum_tile(int64_t p, int64_t f, N (&sum)[tile][wide]) const {
    const int64_t padded = in_.padded, features = sizes_.padded_features, count = in_.count;
    const View<N> messages = in_.x.view(), factors = a_.view();
    for (int64_t a = 0; a < count; ++a) {
      N x[wide];
      for (int k = 0; k < wide; ++k) x[k] = messages.get(a * features + f + k * lanes);
      for (int64_t t = 0; t < tile; ++t) {
        const N factor = factors.everywhere((p + t) * padded + a);
        for (int k = 0; k < wide; ++k) sum[t][k] += factor * x[k];
      }
    }
  }

  template <int wide, typename Give>
  MOLKERN_INLINE void rows_of(int64_t f, Give&& give) {
    for (int64_t p = 0; p < sizes_.padded_channels; p += tile) {
      N sum[tile][wide] = {};
      sum_tile<wide>(p, f, sum);
      for (int64_t t = 0; t < tile; ++t)
        for (int k = 0; k < wide; ++k) give(p + t, f + k * lanes, sum[t][k]);
    }
  }

  // Calls give(p, f, y[p, f ...]) for all channels and vectors of features.
  template <typename Give>
  MOLKERN_INLINE void rows(Give&& give) {
    int64_t f = 0;
    for (; f + 2 * lanes <= sizes_.padded_features; f += 2 * lanes) rows_of<2>(f, give);
    for (; f < sizes_.padded_features; f += lanes) rows_of<1>(f, give);
  }

  template <int wide>
  MOLKERN_INLINE void weighted_rows_of(int64_t f, T* y) {
    N total[wide] = {};
    for (int64_t p = 0; p < sizes_.padded_channels; p += tile) {
      N sum[tile][wide] = {};
      sum_tile<wide>(p, f, sum);
      for (int64_t t = 0; t < tile; ++t)
        for (int k = 0; k < wide; ++k)
          total[k] += sum[t][k] * w_.get((p + t) * sizes_.padded_features + f + k * lanes);
    }
    for (int k = 0; k < wide; ++k)
      store_in_row(y, f + k * lanes, sizes_.features, V(result_of(total[k])));
  }

  void weighted_rows(T* y) {
    int64_t f = 0;
    for (; f + 2 * lanes <= sizes_.padded_features; f += 2 * lanes) weighted_rows_of<2>(f, y);
    for (; f < sizes_.padded_features; f += lanes) weighted_rows_of<1>(f, y);
  }

  // g of one outgoing edge for every channel, times the weights if there are any.
  void read_cotangent(const T* g) const {
    const int64_t features = sizes_.features, padded = sizes_.padded_features;
    const int64_t channels = sizes_.channels, step = form_.weighted ? 0 : features;
    const bool weighted = form_.weighted;
    const View<N> weights = w_.view(), to = g_.view();
    for (int64_t f = 0; f < padded; f += lanes)
      for (int64_t p = 0; p < channels; ++p) {
        const V cotangent = load_some<V>(g + p * step + f, features - f);
        const int64_t place = p * padded + f;
        to.set(place, (weighted ? weights.get(place) : constant<N>(1)) * cotangent);
      }
  }

  // G[p, a] = sum over f of g[p, f] x[a, f]
  template <int wide>
  MOLKERN_INLINE void products_of(int64_t a) const {
    const int64_t padded = in_.padded, row = sizes_.padded_features, features = sizes_.features;
    const int64_t channels = sizes_.padded_channels;
    const View<N> messages = transposed_.view(), cotangents = g_.view(), to = product_.view();
    for (int64_t p = 0; p < channels; p += tile) {
      N sum[tile][wide] = {};
      for (int64_t f = 0; f < features; ++f) {
        N x[wide];
        for (int k = 0; k < wide; ++k) x[k] = messages.get(f * padded + a + k * lanes);
        for (int64_t t = 0; t < tile; ++t) {
          const N factor = cotangents.everywhere((p + t) * row + f);
          for (int k = 0; k < wide; ++k) sum[t][k] += factor * x[k];
        }
      }
      for (int64_t t = 0; t < tile; ++t)
        for (int k = 0; k < wide; ++k) to.set((p + t) * padded + a + k * lanes, sum[t][k]);
    }
  }

  void products() {
    int64_t a = 0;
    for (; a + 2 * lanes <= in_.padded; a += 2 * lanes) products_of<2>(a);
    for (; a < in_.padded; a += lanes) products_of<1>(a);
  }

  // The derivative by the cosines of `lanes` incoming edges; adds that by q.
  MOLKERN_INLINE N through_radial(int64_t a, View<V> gq) const {
    const int64_t padded = in_.padded, channels = sizes_.channels, orders = sizes_.orders;
    const int64_t rows = sizes_.padded_channels;
    const View<N> q = in_.q.view(), products = product_.view();
    const View<N> polynomials = p_.view(), slopes = slope_.view();
    N by_cosine{};
    for (int64_t l = 0; l < orders; ++l) {
      const N polynomial = polynomials.get(l * padded + a);
      N sum{};
      for (int64_t p = 0; p < channels; ++p) {
        const int64_t place = (l * rows + p) * padded + a;
        const N product = products.get(p * padded + a);
        sum += q.get(place) * product;
        gq.set(place, gq.get(place) + result_of(N(polynomial * product)));
      }
      by_cosine += slopes.get(l * padded + a) * sum;
    }
    return by_cosine;
  }

  // gx[a, f] += sum over p of A[p, a] g[p, f]
  template <int wide>
  MOLKERN_INLINE void add_channels(int64_t p, int64_t f, View<V> gx) const {
    const int64_t padded = in_.padded, features = sizes_.padded_features, count = in_.count;
    const View<N> factors = a_.view(), cotangents = g_.view();
    N g[tile][wide];
    for (int64_t t = 0; t < tile; ++t)
      for (int k = 0; k < wide; ++k) g[t][k] = cotangents.get((p + t) * features + f + k * lanes);
    for (int64_t a = 0; a < count; ++a) {
      N sum[wide] = {};
      for (int64_t t = 0; t < tile; ++t) {
        const N factor = factors.everywhere((p + t) * padded + a);
        for (int k = 0; k < wide; ++k) sum[k] += factor * g[t][k];
      }
      const int64_t place = a * features + f;
      for (int k = 0; k < wide; ++k)
        gx.set(place + k * lanes, gx.get(place + k * lanes) + result_of(sum[k]));
    }
  }

  void add_to_features(View<V> gx) const {
    for (int64_t p = 0; p < sizes_.padded_channels; p += tile) {
      int64_t f = 0;
      for (; f + 2 * lanes <= sizes_.padded_features; f += 2 * lanes) add_channels<2>(p, f, gx);
      for (; f < sizes_.padded_features; f += lanes) add_channels<1>(p, f, gx);
    }
  }

  void add_to_weights(const T* g, Planes<V>& gw) {
    rows([&](int64_t p, int64_t f, N sum) {
      const V cotangent = load_some<V>(g + f, sizes_.features - f);
      const int64_t place = p * sizes_.padded_features + f;
      gw.set(place, gw.get(place) + cotangent * V(result_of(sum)));
    });
  }
};

}  // namespace
}  // namespace molkern
