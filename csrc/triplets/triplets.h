// Sums over triplets k -> j -> i: what DimeNet passes from edge to edge.
//
//   y[b, p, f] = sum over a of A[a, b, p] x[a, f],   A[a, b, p] = sum over l of q[a, l, p]
//   P_l(c_ab)
//
// for an edge b = j -> i, over the edges a = k -> j that its sender receives but for b's own
// reverse. P_l are Legendre polynomials; c_ab is the cosine of an angle, by convention (u are unit
// vectors, from receiver to sender):
//
//   kji        at j, between i and k:                     c = -u_b . u_a
//   plusplus   pi minus that (DimeNet++'s code):          c =  u_b . u_a
//   at_i       at i, between j and k (DimeNet's code):    c =  u_b . (v_a + v_b) / |v_a + v_b|
//
// With weights w [F, P] the result is y[b, f] = sum over p of w[f, p] y[b, p, f] (DimeNet++'s
// Hadamard form); without, all of y (DimeNet's bilinear layer contracts it afterwards).
//
// Nothing with a dimension of triplets is stored. All triplets of an atom j are the pairs of its
// incoming and outgoing edges: per atom, the sum is a product of matrices, [n P, n] times [n, F]
// for n neighbors. The direct kernels compute just that. The moment kernels use the addition
// theorem
//
//   P_l(u . v) = sum over m of Y_lm(u) Y_lm(v)       (real harmonics, scaled so that this holds)
//
// to sum over incoming edges once per atom, M[lm, p, f] = sum over a of Y_lm(u_a) q[a, l, p] x[a,
// f], and once per outgoing edge; then they subtract the triplet with the reverse. Their cost is
// linear in the edges; at_i does not factorise.
//
// Cost per pair of edges, direct: P F multiply-adds (and 2 P L for A) for the value, three times
// that for the gradient. By moments, per edge: 2 L^2 F (and P L F for w q) with weights, 2 L^2 P F
// without. Memory: x, q and y once; the rest stays in the caches.
//
// With s = <g, y> the three functions are the value, the gradient of s by x, q, v and w, and the
// derivative of <h, gradient> for h = (hx, hq, hv, hw): the first two in dual numbers. The gradient
// by v has a part from either role of an edge, which are added at the end; the gradient by w is
// summed over fixed blocks of atoms. So results are the same bits for every number of threads.
#pragma once

#include <cstdint>

#include "common/graph.h"
#include "common/isa.h"
#include "common/stream.h"

namespace molkern {

enum class TripletAngle : int { kji = 0, plusplus = 1, at_i = 2 };

struct TripletForm {
  TripletAngle angle;
  int orders;    // L
  int channels;  // P
  int features;  // F
  bool weighted;
  // Atoms with at least so many incoming edges are summed by moments (never where they do not
  // factorise).
  int64_t moments_from;
};

struct TripletGraph {
  Adjacency receivers;      // rows are atoms j; entries are the edges that j receives, in order
  Adjacency senders;        // rows are atoms j; entries are the edges that j sends
  const int32_t* excluded;  // [E] the reverse of each edge, or -1 where there is none
  int64_t edges;            // E
};

template <typename T>
struct TripletInputs {
  const T* x;  // [E, F]
  const T* q;  // [E, L, P]
  const T* v;  // [E, 3] from receiver to sender
  const T* w;  // [F, P], null without weights
};

template <typename T>
struct TripletGradients {
  T* x;        // [E, F]
  T* q;        // [E, L, P]
  T* v;        // [E, 3]
  T* w;        // [F, P], null where it is not wanted
  T* v_out;    // [E, 3] workspace
  T* w_parts;  // [triplet_weight_blocks(atoms), F, P] workspace, null where w is
};

// Atoms are summed over in so many blocks for the gradient by w.
inline int64_t triplet_weight_blocks(int64_t atoms) { return atoms < 64 ? atoms : 64; }

// y [E, F] with weights, else [E, P, F]. What belongs to edges that no row names is left alone.
template <Isa isa, typename T>
void triplet_sum_cpu(const TripletForm& form, const TripletGraph& graph,
                     const TripletInputs<T>& inputs, T* y, int threads);

template <Isa isa, typename T>
void triplet_sum_grad_cpu(const TripletForm& form, const TripletGraph& graph,
                          const TripletInputs<T>& inputs,
                          const T* g,  // as y
                          const TripletGradients<T>& gradients, int threads);

template <Isa isa, typename T>
void triplet_sum_hvp_cpu(const TripletForm& form, const TripletGraph& graph,
                         const TripletInputs<T>& inputs,
                         const TripletInputs<T>& direction,  // h; w null without weights
                         const T* g,
                         T* tg,  // as y: derivative of <h, gradient> by g
                         const TripletGradients<T>& products, int threads);

template <typename T>
void triplet_sum_cuda(const TripletForm& form, const TripletGraph& graph,
                      const TripletInputs<T>& inputs, T* y, Stream stream);

template <typename T>
void triplet_sum_grad_cuda(const TripletForm& form, const TripletGraph& graph,
                           const TripletInputs<T>& inputs, const T* g,
                           const TripletGradients<T>& gradients, Stream stream);

template <typename T>
void triplet_sum_hvp_cuda(const TripletForm& form, const TripletGraph& graph,
                          const TripletInputs<T>& inputs, const TripletInputs<T>& direction,
                          const T* g, T* tg, const TripletGradients<T>& products, Stream stream);

}  // namespace molkern
