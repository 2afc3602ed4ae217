// The sum over the triplets of one atom by moments of its incoming edges, see triplets.h. For one
// channel (or all of them, contracted with the weights) with c[a, l, f] = q[a, l, p] or
// sum over p of q[a, l, p] w[f, p]:
//
//   z[a, l, f] = c[a, l, f] x[a, f],   M[lm, f] = sum over a of Y_lm(u_a) z[a, l, f]
//   y[b, f]    = sum over lm of Y_lm(w_b) M[lm, f]  -  the term of the excluded edge
//
// where w_b is u_b up to the sign of the convention. Lanes run over features, in the harmonics over
// edges.
#pragma once

#include "triplets/atom_cpu.h"
#include "triplets/harmonics.h"

namespace molkern {
namespace {  // every instruction set has its own

// The outgoing edges of an atom.
template <typename N>
struct OutgoingEdges {
  int64_t count = 0, padded = 0;
  std::vector<int64_t> edges;     // their places
  std::vector<int64_t> excluded;  // places among the incoming edges, -1 where there is none
  std::vector<EdgeDirection<Single<N>>> directions;
};

template <typename N>
class TripletMoments {
  using V = ValueOf<N>;
  using T = Scalar<V>;
  using S = Single<N>;
  static constexpr int64_t lanes = TripletSizes<N>::lanes;

  const TripletForm& form_;
  TripletSizes<N> sizes_;
  const IncomingEdges<N>& in_;
  const Planes<N>& w_;
  std::vector<double> norms_;
  int64_t harmonics_, passes_;
  Planes<N> y_in_, y_out_;  // [harmonics, padded edges]
  Planes<N> dy_in_[3], dy_out_[3];
  Planes<N> by_y_;       // [harmonics, padded edges]: the derivative by harmonics
  Planes<N> c_, z_;      // [incoming, orders, padded features]
  Planes<N> y_;          // [4, padded features] rows of the result
  Planes<N> m_;          // [harmonics, padded features]
  Planes<N> n_;          // [harmonics, padded features]: sum over b of Y_lm(w_b) g[b, f]
  Planes<N> gz_;         // [incoming, orders, padded features]
  Planes<V> g_;          // [outgoing, padded features]
  Planes<N> gw_out_[3];  // [padded outgoing] by w_b

 public:
  TripletMoments(const TripletForm& form, const TripletSizes<N>& sizes, int64_t most_outgoing,
                 const IncomingEdges<N>& in, const Planes<N>& w, bool gradient)
      : form_(form),
        sizes_(sizes),
        in_(in),
        w_(w),
        norms_(harmonic_norms(form.orders)),
        harmonics_(int64_t{form.orders} * form.orders),
        passes_(form.weighted ? 1 : form.channels) {
    const int64_t outgoing = std::max(padded_to(most_outgoing, lanes), lanes);
    const int64_t features = sizes.padded_features, rows = sizes.incoming * sizes.orders;
    y_in_ = Planes<N>(harmonics_ * sizes.incoming);
    y_out_ = Planes<N>(harmonics_ * outgoing);
    c_ = Planes<N>(rows * features);
    z_ = Planes<N>(rows * features);
    y_ = Planes<N>(4 * features);
    m_ = Planes<N>(harmonics_ * features);
    if (!gradient) return;
    n_ = Planes<N>(harmonics_ * features);
    gz_ = Planes<N>(rows * features);
    g_ = Planes<V>(outgoing * features);
    by_y_ = Planes<N>(harmonics_ * std::max(outgoing, sizes.incoming));
    for (int k = 0; k < 3; ++k) {
      dy_in_[k] = Planes<N>(harmonics_ * sizes.incoming);
      dy_out_[k] = Planes<N>(harmonics_ * outgoing);
      gw_out_[k] = Planes<N>(outgoing);
    }
  }

  void value(const OutgoingEdges<N>& out, T* y) {
    find_harmonics<false>(out);
    for (int64_t pass = 0; pass < passes_; ++pass) {
      find_messages(pass);
      multiply_by_order(y_in_, in_.padded, z_, m_);
      contract(out, pass, y);
    }
  }

  void gradient(const OutgoingEdges<N>& out, const T* g, IncomingGradient<N>& sums, T* gv_out,
                Planes<V>* gw) {
    find_harmonics<true>(out);
    for (auto& sum : gw_out_) sum.clear(out.padded);
    for (int64_t pass = 0; pass < passes_; ++pass) {
      find_messages(pass);
      multiply_by_order(y_in_, in_.padded, z_, m_);
      read_cotangents(out, pass, g);
      multiply_cotangents(out);
      by_messages(out);
      through_outgoing(out);
      through_incoming(sums);
      exclude(out, sums);
      finish_pass(pass, sums, gw);
    }
    for (int64_t b = 0; b < out.count; ++b) {
      S total[3];
      for (int k = 0; k < 3; ++k) total[k] = sign() < 0 ? -gw_out_[k].one(b) : gw_out_[k].one(b);
      through_unit_vector(out.directions[b], total);
      for (int k = 0; k < 3; ++k) gv_out[3 * out.edges[b] + k] = result_of(total[k]);
    }
  }

 private:
  int sign() const { return form_.angle == TripletAngle::kji ? -1 : 1; }
  int64_t row_of(int64_t edge, int64_t pass) const {
    return (edge * passes_ + pass) * sizes_.features;
  }
  int64_t message(int64_t a, int64_t l, int64_t f) const {
    return (a * sizes_.orders + l) * sizes_.padded_features + f;
  }
  // w_b
  S turned(const EdgeDirection<S>& b, int k) const { return sign() < 0 ? -b.u[k] : b.u[k]; }

  template <bool slopes>
  void find_harmonics(const OutgoingEdges<N>& out) {
    for (int64_t a = 0; a < in_.padded; a += lanes)
      give_harmonics<slopes>(in_.u[0].get(a), in_.u[1].get(a), in_.u[2].get(a), a, in_.padded,
                             y_in_, dy_in_);
    Planes<N> w[3];
    for (int k = 0; k < 3; ++k) {
      w[k] = Planes<N>(out.padded);
      for (int64_t b = 0; b < out.count; ++b) w[k].set_one(b, turned(out.directions[b], k));
    }
    for (int64_t b = 0; b < out.padded; b += lanes)
      give_harmonics<slopes>(w[0].get(b), w[1].get(b), w[2].get(b), b, out.padded, y_out_, dy_out_);
  }

  // An edge of length zero has no direction: of its harmonics only that of order 0 is not zero.
  template <bool slopes>
  MOLKERN_INLINE void give_harmonics(N x, N y, N z, int64_t edge, int64_t padded, Planes<N>& value,
                                     Planes<N>* derivative) {
    const N length = constant<N>(-0.25) + x * x + y * y + z * z;
    harmonics(x, y, z, form_.orders, norms_.data(),
              [&](int64_t lm, N harmonic, N by_x, N by_y, N by_z) {
                const int64_t place = lm * padded + edge;
                value.set(place, lm == 0 ? harmonic : where_positive(length, harmonic));
                if constexpr (slopes) {
                  derivative[0].set(place, where_positive(length, by_x));
                  derivative[1].set(place, where_positive(length, by_y));
                  derivative[2].set(place, where_positive(length, by_z));
                }
              });
  }

  static MOLKERN_INLINE N where_positive(N x, N yes) {
    if constexpr (NumberTraits<N>::dual)
      return {x.value > T(0) ? yes.value : V{}, x.value > T(0) ? yes.slope : V{}};
    else
      return x > T(0) ? yes : V{};
  }

  // c and z of one pass.
  void find_messages(int64_t pass) {
    for (int64_t a = 0; a < in_.count; ++a)
      for (int64_t l = 0; l < sizes_.orders; ++l)
        for_features([&](int64_t f, auto wide) {
          N c[wide()] = {};
          if (form_.weighted)
            for (int64_t p = 0; p < sizes_.channels; ++p) {
              const N factor = in_.q.everywhere(in_.place(l, p) + a);
              for (int k = 0; k < wide(); ++k)
                c[k] += factor * w_.get(p * sizes_.padded_features + f + k * lanes);
            }
          else
            for (int k = 0; k < wide(); ++k) c[k] = in_.q.everywhere(in_.place(l, pass) + a);
          for (int k = 0; k < wide(); ++k) {
            const N x = in_.x.get(a * sizes_.padded_features + f + k * lanes);
            c_.set(message(a, l, f + k * lanes), c[k]);
            z_.set(message(a, l, f + k * lanes), c[k] * x);
          }
        });
  }

  // to[lm, f] = sum over a of Y_lm(a) from[a, l, f]
  void multiply_by_order(const Planes<N>& y, int64_t padded, const Planes<N>& from, Planes<N>& to) {
    for (int64_t l = 0; l < sizes_.orders; ++l)
      for (int64_t row = l * l; row < (l + 1) * (l + 1); row += 4)
        for_rows(std::min<int64_t>(4, (l + 1) * (l + 1) - row), [&](auto rows) {
          for_features([&](int64_t f, auto wide) {
            N sum[rows()][wide()] = {};
            for (int64_t a = 0; a < in_.count; ++a) {
              N z[wide()];
              for (int k = 0; k < wide(); ++k) z[k] = from.get(message(a, l, f + k * lanes));
              for (int r = 0; r < rows(); ++r) {
                const N factor = y.everywhere((row + r) * padded + a);
                for (int k = 0; k < wide(); ++k) sum[r][k] += factor * z[k];
              }
            }
            for (int r = 0; r < rows(); ++r)
              for (int k = 0; k < wide(); ++k)
                to.set((row + r) * sizes_.padded_features + f + k * lanes, sum[r][k]);
          });
        });
  }

  // Calls run(f, width) for all features, `width` vectors (a constant) at a time.
  template <typename Run>
  MOLKERN_INLINE void for_features(Run&& run) const {
    int64_t f = 0;
    for (; f + 2 * lanes <= sizes_.padded_features; f += 2 * lanes)
      run(f, std::integral_constant<int, 2>{});
    for (; f < sizes_.padded_features; f += lanes) run(f, std::integral_constant<int, 1>{});
  }
  // Calls run(count) with a constant, 1 to 4.
  template <typename Run>
  static MOLKERN_INLINE void for_rows(int64_t count, Run&& run) {
    if (count == 4) return run(std::integral_constant<int, 4>{});
    if (count == 3) return run(std::integral_constant<int, 3>{});
    if (count == 2) return run(std::integral_constant<int, 2>{});
    run(std::integral_constant<int, 1>{});
  }

  // y of four outgoing edges at a time, so that moments are loaded once for all.
  void contract(const OutgoingEdges<N>& out, int64_t pass, T* y) {
    for (int64_t first = 0; first < out.count; first += 4)
      for_rows(std::min<int64_t>(4, out.count - first), [&](auto rows) {
        for_features([&](int64_t f, auto wide) {
          N sum[rows()][wide()] = {};
          for (int64_t lm = 0; lm < harmonics_; ++lm) {
            N m[wide()];
            for (int k = 0; k < wide(); ++k)
              m[k] = m_.get(lm * sizes_.padded_features + f + k * lanes);
            for (int r = 0; r < rows(); ++r) {
              const N factor = y_out_.everywhere(lm * out.padded + first + r);
              for (int k = 0; k < wide(); ++k) sum[r][k] += factor * m[k];
            }
          }
          for (int r = 0; r < rows(); ++r)
            for (int k = 0; k < wide(); ++k)
              y_.set(r * sizes_.padded_features + f + k * lanes, sum[r][k]);
        });
        for (int r = 0; r < rows(); ++r)
          write_row(out, first + r, r * sizes_.padded_features,
                    y + row_of(out.edges[first + r], pass));
      });
  }

  // Subtracts the excluded edge's part and writes what is left.
  void write_row(const OutgoingEdges<N>& out, int64_t b, int64_t row, T* y) {
    const int64_t excluded = out.excluded[b];
    if (excluded >= 0)
      legendre(cosine(out, b), form_.orders, [&](int l, N p) {
        for (int64_t f = 0; f < sizes_.padded_features; f += lanes)
          y_.set(row + f, y_.get(row + f) - p * z_.get(message(excluded, l, f)));
      });
    for (int64_t f = 0; f < sizes_.features; f += lanes)
      store_in_row(y, f, sizes_.features, V(result_of(y_.get(row + f))));
  }

  // Of the angle with the excluded edge.
  N cosine(const OutgoingEdges<N>& out, int64_t b) const {
    N c{};
    for (int k = 0; k < 3; ++k)
      c += in_.u[k].everywhere(out.excluded[b]) * in_every_lane<N>(turned(out.directions[b], k));
    return c;
  }

  void read_cotangents(const OutgoingEdges<N>& out, int64_t pass, const T* g) {
    for (int64_t b = 0; b < out.count; ++b) {
      const T* row = g + row_of(out.edges[b], pass);
      for (int64_t f = 0; f < sizes_.padded_features; f += lanes) {
        g_.set(b * sizes_.padded_features + f, load_some<V>(row + f, sizes_.features - f));
      }
    }
  }

  void multiply_cotangents(const OutgoingEdges<N>& out) {
    for (int64_t row = 0; row < harmonics_; row += 4)
      for_rows(std::min<int64_t>(4, harmonics_ - row), [&](auto rows) {
        for_features([&](int64_t f, auto wide) {
          N sum[rows()][wide()] = {};
          for (int64_t b = 0; b < out.count; ++b) {
            V g[wide()];
            for (int k = 0; k < wide(); ++k)
              g[k] = g_.get(b * sizes_.padded_features + f + k * lanes);
            for (int r = 0; r < rows(); ++r) {
              const N factor = y_out_.everywhere((row + r) * out.padded + b);
              for (int k = 0; k < wide(); ++k) sum[r][k] += factor * g[k];
            }
          }
          for (int r = 0; r < rows(); ++r)
            for (int k = 0; k < wide(); ++k)
              n_.set((row + r) * sizes_.padded_features + f + k * lanes, sum[r][k]);
        });
      });
  }

  // gz[a, l, f] = sum over m of Y_lm(u_a) N[lm, f], without the excluded edges' part
  void by_messages(const OutgoingEdges<N>& out) {
    for (int64_t first = 0; first < in_.count; first += 4)
      for_rows(std::min<int64_t>(4, in_.count - first), [&](auto rows) {
        for (int64_t l = 0; l < sizes_.orders; ++l)
          for_features([&](int64_t f, auto wide) {
            N sum[rows()][wide()] = {};
            for (int64_t lm = l * l; lm < (l + 1) * (l + 1); ++lm) {
              N n[wide()];
              for (int k = 0; k < wide(); ++k)
                n[k] = n_.get(lm * sizes_.padded_features + f + k * lanes);
              for (int r = 0; r < rows(); ++r) {
                const N factor = y_in_.everywhere(lm * in_.padded + first + r);
                for (int k = 0; k < wide(); ++k) sum[r][k] += factor * n[k];
              }
            }
            for (int r = 0; r < rows(); ++r)
              for (int k = 0; k < wide(); ++k)
                gz_.set(message(first + r, l, f + k * lanes), sum[r][k]);
          });
      });
    for (int64_t b = 0; b < out.count; ++b) {
      const int64_t a = out.excluded[b];
      if (a < 0) continue;
      legendre(cosine(out, b), form_.orders, [&](int l, N p) {
        for (int64_t f = 0; f < sizes_.padded_features; f += lanes) {
          const int64_t place = message(a, l, f);
          gz_.set(place, gz_.get(place) - p * g_.get(b * sizes_.padded_features + f));
        }
      });
    }
  }

  // The products of a row of `left` and `rows` rows of `right`, over all features.
  template <int rows, typename Left>
  MOLKERN_INLINE void dots(const Left& left, int64_t l, const Planes<N>& right, int64_t r,
                           S (&products)[4]) const {
    N sum[rows] = {};
    for (int64_t f = 0; f < sizes_.padded_features; f += lanes) {
      const auto factor = left.get(l + f);
      for (int k = 0; k < rows; ++k)
        sum[k] += right.get(r + k * sizes_.padded_features + f) * factor;
    }
    for (int k = 0; k < rows; ++k) products[k] = sum_of_lanes(sum[k]);
  }

  // The derivatives by the harmonics of outgoing edges, and through them by their directions.
  void through_outgoing(const OutgoingEdges<N>& out) {
    const int64_t features = sizes_.padded_features;
    for (int64_t b = 0; b < out.count; ++b)
      for (int64_t row = 0; row < harmonics_; row += 4)
        for_rows(std::min<int64_t>(4, harmonics_ - row), [&](auto rows) {
          S products[4];
          dots<rows()>(g_, b * features, m_, row * features, products);
          for (int r = 0; r < rows(); ++r) by_y_.set_one((row + r) * out.padded + b, products[r]);
        });
    through_directions(out.count, out.padded, dy_out_, gw_out_);
  }

  void through_incoming(IncomingGradient<N>& sums) {
    for (int64_t a = 0; a < in_.count; ++a)
      for (int64_t l = 0; l < sizes_.orders; ++l)
        for (int64_t row = l * l; row < (l + 1) * (l + 1); row += 4)
          for_rows(std::min<int64_t>(4, (l + 1) * (l + 1) - row), [&](auto rows) {
            S products[4];
            dots<rows()>(z_, message(a, l, 0), n_, row * sizes_.padded_features, products);
            for (int r = 0; r < rows(); ++r) by_y_.set_one((row + r) * in_.padded + a, products[r]);
          });
    through_directions(in_.count, in_.padded, dy_in_, sums.v);
  }

  void through_directions(int64_t count, int64_t padded, const Planes<N>* slopes, Planes<N>* sums) {
    for (int64_t e = count; e < padded; ++e)
      for (int64_t lm = 0; lm < harmonics_; ++lm) by_y_.set_one(lm * padded + e, S{});
    for (int64_t e = 0; e < padded; e += lanes)
      for (int k = 0; k < 3; ++k) {
        N sum = sums[k].get(e);
        for (int64_t lm = 0; lm < harmonics_; ++lm)
          sum += by_y_.get(lm * padded + e) * slopes[k].get(lm * padded + e);
        sums[k].set(e, sum);
      }
  }

  // What the excluded edges have in the derivatives by directions.
  void exclude(const OutgoingEdges<N>& out, IncomingGradient<N>& sums) {
    for (int64_t b = 0; b < out.count; ++b) {
      const int64_t a = out.excluded[b];
      if (a < 0) continue;
      N by_cosine{};
      legendre_slopes(cosine(out, b), form_.orders, [&](int l, N, N slope) {
        S product[4];
        dots<1>(g_, b * sizes_.padded_features, z_, message(a, l, 0), product);
        by_cosine += slope * in_every_lane<N>(product[0]);
      });
      const EdgeDirection<S> incoming = in_.direction(a);
      for (int k = 0; k < 3; ++k) {
        const N into_a = by_cosine * in_every_lane<N>(turned(out.directions[b], k));
        const N into_b = by_cosine * in_every_lane<N>(incoming.u[k]);
        sums.v[k].set_one(a, sums.v[k].one(a) - first_lane(into_a));
        gw_out_[k].set_one(b, gw_out_[k].one(b) - first_lane(into_b));
      }
    }
  }

  static MOLKERN_INLINE S first_lane(N x) {
    if constexpr (NumberTraits<N>::dual)
      return {x.value[0], x.slope[0]};
    else
      return x[0];
  }

  // From gz to the derivatives by x, q and the weights.
  void finish_pass(int64_t pass, IncomingGradient<N>& sums, Planes<V>* gw) {
    const int64_t features = sizes_.padded_features;
    for (int64_t a = 0; a < in_.count; ++a) {
      for (int64_t f = 0; f < features; f += lanes) {
        N sum{};
        for (int64_t l = 0; l < sizes_.orders; ++l)
          sum += gz_.get(message(a, l, f)) * c_.get(message(a, l, f));
        sums.x.set(a * features + f, sums.x.get(a * features + f) + result_of(sum));
        for (int64_t l = 0; l < sizes_.orders; ++l)  // now the derivative by c
          gz_.set(message(a, l, f), gz_.get(message(a, l, f)) * in_.x.get(a * features + f));
      }
      for (int64_t l = 0; l < sizes_.orders; ++l)
        if (form_.weighted)
          through_weights(a, l, sums, gw);
        else
          sums.q.set_one(in_.place(l, pass) + a, result_of(total(message(a, l, 0))));
    }
  }

  S total(int64_t place) const {
    N sum{};
    for (int64_t f = 0; f < sizes_.features; f += lanes) sum += gz_.get(place + f);
    return sum_of_lanes(sum);
  }

  MOLKERN_INLINE void through_weights(int64_t a, int64_t l, IncomingGradient<N>& sums,
                                      Planes<V>* gw) {
    const int64_t features = sizes_.padded_features, row = message(a, l, 0);
    for (int64_t p = 0; p < sizes_.padded_channels; p += 4) {
      S products[4];
      dots<4>(gz_, row, w_, p * features, products);
      for (int64_t k = 0; k < 4; ++k)
        sums.q.set_one(in_.place(l, p + k) + a, result_of(products[k]));
    }
    for (int64_t p = 0; gw && p < sizes_.channels; ++p) {
      const N q = in_.q.everywhere(in_.place(l, p) + a);
      for (int64_t f = 0; f < features; f += lanes) {
        const int64_t place = p * features + f;
        gw->set(place, gw->get(place) + result_of(N(q * gz_.get(row + f))));
      }
    }
  }
};

}  // namespace
}  // namespace molkern
