// Dense layers: a matrix product with bias, activation and residual in one pass over the output.
//
//   dense:             z = x W^T + b,  y = residual + a(z),  slope = a'(z)
//   with a gate:       q = e V^T,  y = residual + a(z) * q,  slope = a'(z) * q,  value = a(z)
//   dense_input_grad:  gx = residual + (g * slope) W;  with the gate ge = (g * value) V
//   dense_residual:    h = a(x W1^T + b1),  y = x + a(h W2^T + b2), whose gradient is the same
//   twice:
//                      gx = g + (((g * slope2) W2) * slope1) W1
//   where * is by element.
//
//   activation   a(z)                                          a'(z)
//   none         z                                             1, stored only as the gate
//   silu         z sigma(z)                                    sigma (1 + z (1 - sigma))
//   ssp          ln(exp(z) / 2 + 1 / 2), z - ln 2 for z > 20   sigma, and 1
//   tanh         tanh(z)                                       1 - tanh(z)^2
//
// A number of the product is a sum over k in order, started from the bias, whatever rows it is
// computed with: results are the same bits for every number of threads and every batch of rows. The
// gate is such a product too; it exists for a few rows at a time only.
//
// Cost: 2 M N K FLOP, which the CPU does at about 0.9 of its peak, and one exponential and one
// division (two for ssp) per number of the output; the weights are rearranged once per call.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace molkern {

enum class Activation : int { none = 0, silu = 1, ssp = 2, tanh = 3 };

// Rows and columns of the product and the length of its sums.
struct DenseShape {
  int64_t rows;     // M
  int64_t columns;  // N; of dense_input_grad K
  int64_t depth;    // K; of dense_input_grad N
};

// The gate of a layer: e V^T.
template <typename T>
struct DenseGate {
  const T* basis;   // e [M, R]
  const T* weight;  // V [N, R]
  int64_t depth;    // R
};

// Numbers of workspace that a product needs for the rearranged weights, that of a gate included.
int64_t dense_workspace(const DenseShape& shape);

template <Isa isa, typename T>
void dense_cpu(Activation activation,
               const T* x,                // [M, K]
               const T* w,                // [N, K]
               const T* bias,             // [N] or null
               const T* residual,         // [M, N] or null
               const DenseGate<T>* gate,  // or null
               T* y,                      // [M, N]
               T* slope,                  // [M, N] or null
               T* value,                  // [M, N] or null, null without a gate
               T* workspace,              // of the product, then of the gate
               const DenseShape& shape, int threads);

template <Isa isa, typename T>
void dense_input_grad_cpu(const T* g,         // [M, N]
                          const T* slope,     // [M, N], null for 1
                          const T* w,         // [N, K]
                          const T* residual,  // [M, K] or null
                          T* gx,              // [M, K]
                          T* workspace, const DenseShape& shape, int threads);

}  // namespace molkern
