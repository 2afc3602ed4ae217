#include <cmath>
#include <vector>

#include "common/host_device.h"
#include "common/memory.h"
#include "common/parallel.h"
#include "geometry/geometry.h"

namespace molkern {

namespace {

// Calls write(e, v) for every edge that a row names, v being its vector.
template <bool periodic, typename T, typename Write>
void each_vector(const Adjacency& receivers, const Images& images, const T* positions,
                 const T* cell, int threads, Write write) {
  parallel_for(threads, receivers.rows, [=](int64_t i) {
    const T* xi = positions + 3 * i;
    const T* c = periodic ? cell + 9 * (images.system ? images.system[i] : 0) : nullptr;
    for (int64_t k = receivers.row_ptr[i]; k < receivers.row_ptr[i + 1]; ++k) {
      const int64_t e = receivers.edge(k);
      const T* xj = positions + 3 * static_cast<int64_t>(receivers.neighbors[k]);
      T v[3];
      for (int a = 0; a < 3; ++a) v[a] = xj[a] - xi[a];
      if constexpr (periodic) {
        const int32_t* shift = images.shifts + 3 * e;
        const T s0 = T(shift[0]), s1 = T(shift[1]), s2 = T(shift[2]);
        for (int a = 0; a < 3; ++a) v[a] += s0 * c[a] + s1 * c[3 + a] + s2 * c[6 + a];
      }
      write(e, v);
    }
  });
}

template <typename T, typename Write>
void each_vector_of(const Adjacency& receivers, const Images& images, const T* positions,
                    const T* cell, int threads, Write write) {
  if (images.shifts && cell)
    each_vector<true>(receivers, images, positions, cell, threads, write);
  else
    each_vector<false>(receivers, images, positions, cell, threads, write);
}

template <typename T>
T square(const T* v) {
  return v[0] * v[0] + v[1] * v[1] + v[2] * v[2];
}

template <typename T>
T length(const T* v) {
  const T squared = square(v);
  return squared < smallest_square<T> ? T(0) : std::sqrt(squared);
}

}  // namespace

template <Isa isa, typename T>
void edge_vectors_cpu(const Adjacency& receivers, const Images& images, const T* positions,
                      const T* cell, T* vectors, int threads) {
  each_vector_of(receivers, images, positions, cell, threads, [=](int64_t e, const T* v) {
    for (int a = 0; a < 3; ++a) vectors[3 * e + a] = v[a];
  });
}

template <Isa isa, typename T>
void edge_distances_cpu(const Adjacency& receivers, const Images& images, const T* positions,
                        const T* cell, T* distances, int threads) {
  each_vector_of(receivers, images, positions, cell, threads, [=](int64_t e, const T* v) {
    prefetch_to_write(distances + e, 2048);
    if (images.shifts) prefetch_to_read(images.shifts + 3 * e, 3072);
    distances[e] = length(v);
  });
}

namespace {

// Adds the vectors of one row to total, one lane after the other.
template <typename T>
void sum_row(const Adjacency& graph, int64_t row, const T* vectors, T sign, T* total) {
  T sum[3] = {};
  for (int64_t k = graph.row_ptr[row]; k < graph.row_ptr[row + 1]; ++k) {
    const T* v = vectors + 3 * graph.edge(k);
    for (int a = 0; a < 3; ++a) sum[a] += v[a];
  }
  for (int a = 0; a < 3; ++a) total[a] += sign * sum[a];
}

// The part of the cell gradient that the edges received by one atom contribute, [3, 3].
template <typename T>
void cell_gradient_of_row(const Adjacency& receivers, const int32_t* shifts, int64_t row,
                          const T* grad_vectors, double* result) {
  for (int a = 0; a < 9; ++a) result[a] = 0;
  for (int64_t k = receivers.row_ptr[row]; k < receivers.row_ptr[row + 1]; ++k) {
    const int64_t e = receivers.edge(k);
    const T* g = grad_vectors + 3 * e;
    for (int a = 0; a < 3; ++a)
      for (int b = 0; b < 3; ++b) result[3 * a + b] += double(shifts[3 * e + a]) * double(g[b]);
  }
}

}  // namespace

template <Isa isa, typename T>
void edge_vectors_adjoint_cpu(const Adjacency& receivers, const Adjacency& senders,
                              const Images& images, const T* grad_vectors, T* grad_positions,
                              T* grad_cell, int threads) {
  const int64_t atoms = receivers.rows;
  const bool periodic = images.shifts && grad_cell;
  std::vector<double> rows(periodic ? 9 * atoms : 0);
  double* const row_sums = rows.data();
  parallel_for(threads, atoms, [=](int64_t i) {
    T* total = grad_positions + 3 * i;
    for (int a = 0; a < 3; ++a) total[a] = 0;
    sum_row(senders, i, grad_vectors, T(1), total);
    sum_row(receivers, i, grad_vectors, T(-1), total);
    if (periodic) cell_gradient_of_row(receivers, images.shifts, i, grad_vectors, row_sums + 9 * i);
  });
  if (!grad_cell) return;
  std::vector<double> sums(9 * images.systems);
  for (int64_t i = 0; periodic && i < atoms; ++i) {
    double* sum = sums.data() + 9 * (images.system ? images.system[i] : 0);
    for (int a = 0; a < 9; ++a) sum[a] += rows[9 * i + a];
  }
  for (int64_t a = 0; a < 9 * images.systems; ++a) grad_cell[a] = T(sums[a]);
}

template <Isa isa, typename T>
void edge_norm_cpu(const T* vectors, T* distances, int64_t edges, int threads) {
  parallel_for(threads, edges, [=](int64_t e) { distances[e] = length(vectors + 3 * e); });
}

namespace {

// 1 / |v|, and 0 where v counts as zero: every derivative of the norm there is zero.
template <typename T>
T inverse_norm(const T* v) {
  const T squared = square(v);
  return squared < smallest_square<T> ? T(0) : T(1) / std::sqrt(squared);
}

}  // namespace

template <Isa isa, typename T>
void edge_norm_grad_cpu(const T* grad_distances, const T* vectors, T* grad_vectors, int64_t edges,
                        int threads) {
  parallel_for(threads, edges, [=](int64_t e) {
    const T factor = grad_distances[e] * inverse_norm(vectors + 3 * e);
    for (int a = 0; a < 3; ++a) grad_vectors[3 * e + a] = factor * vectors[3 * e + a];
  });
}

template <Isa isa, typename T>
void edge_norm_hvp_cpu(const T* h, const T* grad_distances, const T* vectors,
                       T* grad_grad_distances, T* grad_vectors, int64_t edges, int threads) {
  parallel_for(threads, edges, [=](int64_t e) {
    const T *v = vectors + 3 * e, *he = h + 3 * e;
    const T inverse = inverse_norm(v);
    const T along = (he[0] * v[0] + he[1] * v[1] + he[2] * v[2]) * inverse;
    grad_grad_distances[e] = along;
    const T factor = grad_distances[e] * inverse;
    for (int a = 0; a < 3; ++a) grad_vectors[3 * e + a] = factor * (he[a] - along * inverse * v[a]);
  });
}

#define MOLKERN_INSTANTIATE(T)                                                                     \
  template void edge_vectors_cpu<Isa::MOLKERN_ISA, T>(const Adjacency&, const Images&, const T*,   \
                                                      const T*, T*, int);                          \
  template void edge_distances_cpu<Isa::MOLKERN_ISA, T>(const Adjacency&, const Images&, const T*, \
                                                        const T*, T*, int);                        \
  template void edge_vectors_adjoint_cpu<Isa::MOLKERN_ISA, T>(                                     \
      const Adjacency&, const Adjacency&, const Images&, const T*, T*, T*, int);                   \
  template void edge_norm_cpu<Isa::MOLKERN_ISA, T>(const T*, T*, int64_t, int);                    \
  template void edge_norm_grad_cpu<Isa::MOLKERN_ISA, T>(const T*, const T*, T*, int64_t, int);     \
  template void edge_norm_hvp_cpu<Isa::MOLKERN_ISA, T>(const T*, const T*, const T*, T*, T*,       \
                                                       int64_t, int);
MOLKERN_INSTANTIATE(float)
MOLKERN_INSTANTIATE(double)

}  // namespace molkern
