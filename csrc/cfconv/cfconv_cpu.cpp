#include <algorithm>

#include "cfconv/cfconv.h"
#include "common/parallel.h"

namespace molkern {
namespace {

// Filters seen from the senders lie scattered; they are asked for this many entries ahead.
constexpr int64_t kAhead = 2;
constexpr int64_t kCacheLine = 64;

template <typename T>
void prefetch_row(const T* row, int64_t features) {
  for (int64_t f = 0; f < features; f += kCacheLine / int64_t(sizeof(T)))
    __builtin_prefetch(row + f);
}

}  // namespace

template <Isa isa, typename T>
void convolve_cpu(const Adjacency& graph, const T* x, const T* w, T* y, int64_t features,
                  int threads) {
  parallel_for(threads, graph.rows, [=](int64_t row) {
    T* __restrict sum = y + row * features;
    std::fill_n(sum, features, T(0));
    const int64_t end = graph.row_ptr[row + 1];
    for (int64_t k = graph.row_ptr[row]; k < end; ++k) {
      if (graph.edges && k + kAhead < end)
        prefetch_row(w + graph.edges[k + kAhead] * features, features);
      const T* __restrict neighbor = x + graph.neighbors[k] * features;
      const T* __restrict filter = w + graph.edge(k) * features;
      for (int64_t f = 0; f < features; ++f) sum[f] += neighbor[f] * filter[f];
    }
  });
}

template <Isa isa, typename T>
void edge_product_cpu(const Adjacency& graph, const T* a, const T* b, T* p, int64_t features,
                      int threads) {
  parallel_for(threads, graph.rows, [=](int64_t row) {
    const T* __restrict own = a + row * features;
    for (int64_t k = graph.row_ptr[row]; k < graph.row_ptr[row + 1]; ++k) {
      const T* __restrict neighbor = b + graph.neighbors[k] * features;
      T* __restrict product = p + graph.edge(k) * features;
      for (int64_t f = 0; f < features; ++f) product[f] = own[f] * neighbor[f];
    }
  });
}

#define MOLKERN_INSTANTIATE(T)                                                                  \
  template void convolve_cpu<Isa::MOLKERN_ISA, T>(const Adjacency&, const T*, const T*, T*,     \
                                                  int64_t, int);                                \
  template void edge_product_cpu<Isa::MOLKERN_ISA, T>(const Adjacency&, const T*, const T*, T*, \
                                                      int64_t, int);
MOLKERN_INSTANTIATE(float)
MOLKERN_INSTANTIATE(double)

}  // namespace molkern
