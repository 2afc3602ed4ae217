// A parallel loop that costs nothing with one thread: even an OpenMP region of one thread takes a
// good part of a microsecond to enter, which counts for small molecules.
#pragma once

#include <cstdint>

namespace molkern {

// function(0) ... function(count - 1), in equal consecutive shares.
template <typename Function>
void parallel_for(int threads, int64_t count, Function&& function) {
  if (threads == 1 || count <= 1) {
    for (int64_t k = 0; k < count; ++k) function(k);
    return;
  }
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t k = 0; k < count; ++k) function(k);
}

}  // namespace molkern
