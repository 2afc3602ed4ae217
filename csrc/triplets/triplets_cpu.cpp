// Loops over atoms. Every atom's triplets are summed by matrix products or by moments, whichever is
// cheaper for its number of neighbors.
#include <optional>

#include "common/parallel.h"
#include "triplets/direct_cpu.h"
#include "triplets/moments_cpu.h"
#include "triplets/triplets.h"

namespace molkern {
namespace {

int64_t longest_row(const Adjacency& graph) {
  int32_t longest = 0;
  for (int64_t row = 0; row < graph.rows; ++row)
    longest = std::max(longest, graph.row_ptr[row + 1] - graph.row_ptr[row]);
  return longest;
}

template <typename V, typename T = Scalar<V>>
TripletSources<V> sources(const TripletInputs<T>& in) {
  return {{in.x, nullptr}, {in.q, nullptr}, {in.v, nullptr}, {in.w, nullptr}};
}

template <typename V, typename T = Scalar<V>>
TripletSources<Dual<V>> sources(const TripletInputs<T>& in, const TripletInputs<T>& direction) {
  return {{in.x, direction.x}, {in.q, direction.q}, {in.v, direction.v}, {in.w, direction.w}};
}

// The weights in planes, [padded channels, padded features].
template <typename N>
Planes<N> transposed_weights(const TripletForm& form, const TripletSizes<N>& sizes,
                             const Source<N>& w) {
  Planes<N> planes(sizes.padded_channels * sizes.padded_features);
  if (form.weighted)
    for (int64_t p = 0; p < form.channels; ++p)
      for (int64_t f = 0; f < form.features; ++f)
        planes.set_one(p * sizes.padded_features + f, w[f * form.channels + p]);
  return planes;
}

// What one thread needs to go through atoms.
template <typename N>
struct Worker {
  using V = ValueOf<N>;
  using T = Scalar<V>;
  const TripletForm& form;
  const TripletGraph& graph;
  const TripletSources<N>& in;
  const int64_t row;  // numbers of y for each edge
  IncomingEdges<N> incoming;
  OutgoingEdges<N> outgoing;
  IncomingGradient<N> sums;
  std::optional<DirectTriplets<N>> direct;  // made when first needed
  std::optional<TripletMoments<N>> moments;
  const Planes<N>& w;
  const int64_t most_outgoing;
  const bool with_gradient;

  Worker(const TripletForm& form, const TripletGraph& graph, const TripletSources<N>& in,
         const TripletSizes<N>& sizes, const Planes<N>& w, bool gradient)
      : form(form),
        graph(graph),
        in(in),
        row(form.features * (form.weighted ? 1 : form.channels)),
        incoming(form, sizes),
        sums(incoming),
        w(w),
        most_outgoing(longest_row(graph.senders)),
        with_gradient(gradient) {}

  void fetch(int64_t atom) {
    const int32_t* ends = graph.receivers.row_ptr + atom;
    incoming.fetch(in, ends[0], ends[1] - ends[0]);
    const int64_t first = graph.senders.row_ptr[atom], last = graph.senders.row_ptr[atom + 1];
    outgoing.count = last - first;
    outgoing.padded = padded_to(outgoing.count, TripletSizes<N>::lanes);
    outgoing.edges.resize(outgoing.count);
    outgoing.excluded.resize(outgoing.count);
    outgoing.directions.resize(outgoing.count);
    for (int64_t b = 0; b < outgoing.count; ++b) {
      const int64_t edge = graph.senders.edge(first + b), back = graph.excluded[edge];
      outgoing.edges[b] = edge;
      outgoing.excluded[b] = back < 0 ? -1 : back - incoming.first;
      outgoing.directions[b] = edge_direction(in.v, edge);
    }
  }

  bool by_moments() {
    const bool factorises = form.angle != TripletAngle::at_i;
    return factorises && incoming.count >= std::max<int64_t>(form.moments_from, 1);
  }
  DirectTriplets<N>& use_direct() {
    if (!direct) direct.emplace(form, incoming.sizes, incoming, w, with_gradient);
    return *direct;
  }
  TripletMoments<N>& use_moments() {
    if (!moments) moments.emplace(form, incoming.sizes, most_outgoing, incoming, w, with_gradient);
    return *moments;
  }

  void value(int64_t atom, T* y) {
    fetch(atom);
    if (by_moments()) return use_moments().value(outgoing, y);
    for (int64_t b = 0; b < outgoing.count; ++b)
      use_direct().value(outgoing.directions[b], outgoing.excluded[b], y + outgoing.edges[b] * row);
  }

  void gradient(int64_t atom, const T* g, const TripletGradients<T>& out, Planes<V>* gw) {
    fetch(atom);
    sums.clear();
    if (by_moments()) {
      use_moments().gradient(outgoing, g, sums, out.v_out, gw);
    } else {
      use_direct().begin_gradient();
      for (int64_t b = 0; b < outgoing.count; ++b) {
        const int64_t edge = outgoing.edges[b];
        use_direct().add_gradient(outgoing.directions[b], outgoing.excluded[b], g + edge * row,
                                  sums, out.v_out + 3 * edge, gw);
      }
    }
    sums.write(out);
  }
};

// Calls run(worker, first atom, last atom, block) for blocks of atoms, in equal shares of threads.
template <typename N, typename Run>
void for_blocks(const TripletForm& form, const TripletGraph& graph, const TripletSources<N>& in,
                bool gradient, int threads, Run&& run) {
  const int64_t atoms = graph.receivers.rows, blocks = triplet_weight_blocks(atoms);
  const TripletSizes<N> sizes(form, longest_row(graph.receivers));
  const Planes<N> w = transposed_weights(form, sizes, in.w);
  parallel_for(threads, threads, [&](int64_t share) {
    Worker<N> worker(form, graph, in, sizes, w, gradient);
    for (int64_t block = blocks * share / threads; block < blocks * (share + 1) / threads; ++block)
      run(worker, atoms * block / blocks, atoms * (block + 1) / blocks, block);
  });
}

template <typename N, typename T>
void all_values(const TripletForm& form, const TripletGraph& graph, const TripletSources<N>& in,
                T* y, int threads) {
  for_blocks(form, graph, in, false, threads,
             [&](Worker<N>& worker, int64_t first, int64_t last, int64_t) {
               for (int64_t atom = first; atom < last; ++atom) worker.value(atom, y);
             });
}

template <typename N, typename T>
void all_gradients(const TripletForm& form, const TripletGraph& graph, const TripletSources<N>& in,
                   const T* g, const TripletGradients<T>& out, int threads) {
  const TripletSizes<N> sizes(form, 0);
  const int64_t weights = form.features * form.channels;
  for_blocks(form, graph, in, true, threads,
             [&](Worker<N>& worker, int64_t first, int64_t last, int64_t block) {
               Planes<ValueOf<N>> gw(out.w ? sizes.padded_channels * sizes.padded_features : 0);
               for (int64_t atom = first; atom < last; ++atom)
                 worker.gradient(atom, g, out, out.w ? &gw : nullptr);
               if (!out.w) return;
               for (int64_t f = 0; f < form.features; ++f)
                 for (int64_t p = 0; p < form.channels; ++p)
                   out.w_parts[block * weights + f * form.channels + p] =
                       gw.one(p * sizes.padded_features + f);
             });
  if (out.w) {
    const int64_t blocks = triplet_weight_blocks(graph.receivers.rows);
    for (int64_t k = 0; k < weights; ++k) {
      double sum = 0;
      for (int64_t block = 0; block < blocks; ++block) sum += out.w_parts[block * weights + k];
      out.w[k] = T(sum);
    }
  }
  for (int64_t k = 0; k < 3 * graph.edges; ++k) out.v[k] += out.v_out[k];
}

}  // namespace

template <Isa isa, typename T>
void triplet_sum_cpu(const TripletForm& form, const TripletGraph& graph,
                     const TripletInputs<T>& inputs, T* y, int threads) {
  using V = Vector<T, vector_lanes<isa, T>>;
  all_values(form, graph, sources<V>(inputs), y, threads);
}

template <Isa isa, typename T>
void triplet_sum_grad_cpu(const TripletForm& form, const TripletGraph& graph,
                          const TripletInputs<T>& inputs, const T* g,
                          const TripletGradients<T>& gradients, int threads) {
  using V = Vector<T, vector_lanes<isa, T>>;
  all_gradients(form, graph, sources<V>(inputs), g, gradients, threads);
}

template <Isa isa, typename T>
void triplet_sum_hvp_cpu(const TripletForm& form, const TripletGraph& graph,
                         const TripletInputs<T>& inputs, const TripletInputs<T>& direction,
                         const T* g, T* tg, const TripletGradients<T>& products, int threads) {
  using V = Vector<T, vector_lanes<isa, T>>;
  const auto dual = sources<V>(inputs, direction);
  all_values(form, graph, dual, tg, threads);
  all_gradients(form, graph, dual, g, products, threads);
}

#define MOLKERN_INSTANTIATE(T)                                                                     \
  template void triplet_sum_cpu<Isa::MOLKERN_ISA, T>(const TripletForm&, const TripletGraph&,      \
                                                     const TripletInputs<T>&, T*, int);            \
  template void triplet_sum_grad_cpu<Isa::MOLKERN_ISA, T>(const TripletForm&, const TripletGraph&, \
                                                          const TripletInputs<T>&, const T*,       \
                                                          const TripletGradients<T>&, int);        \
  template void triplet_sum_hvp_cpu<Isa::MOLKERN_ISA, T>(                                          \
      const TripletForm&, const TripletGraph&, const TripletInputs<T>&, const TripletInputs<T>&,   \
      const T*, T*, const TripletGradients<T>&, int);
MOLKERN_INSTANTIATE(float)
MOLKERN_INSTANTIATE(double)

}  // namespace molkern
