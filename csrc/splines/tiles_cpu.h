// What the CPU kernels of splines have in common: tiles of features, and the choice of a kernel.
#pragma once

#include <cstdint>

#include "common/vector.h"

namespace molkern {
namespace {  // a copy for each instruction set

constexpr int chunk = 32;  // entries whose weights are computed together

// Calls tile.template run<V, vectors>(first feature) until all features are done: wide tiles, then
// single vectors, then single numbers.
template <Isa isa, typename T, int vectors, typename Tile>
MOLKERN_INLINE void for_tiles(int64_t features, Tile&& tile) {
  constexpr int lanes = vector_lanes<isa, T>;
  using V = Vector<T, lanes>;
  int64_t f = 0;
  for (; f + vectors * lanes <= features; f += vectors * lanes) tile.template run<V, vectors>(f);
  for (; f + lanes <= features; f += lanes) tile.template run<V, 1>(f);
  for (; f < features; ++f) tile.template run<T, 1>(f);
}

// Calls function<degree, whether there is a direction>().
template <typename Function>
void with_kind(int degree, bool directed, Function&& function) {
  if (degree == 3)
    return directed ? function.template operator()<3, true>()
                    : function.template operator()<3, false>();
  return directed ? function.template operator()<5, true>()
                  : function.template operator()<5, false>();
}

}  // namespace
}  // namespace molkern
