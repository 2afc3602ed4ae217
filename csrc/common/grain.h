// The least work that a thread is started for. Tests lower it, to run small cases on several
// threads.
#pragma once

#include <cstdint>

namespace molkern {

// In numbers read or written by a kernel. A thread costs some microseconds to start, more where
// the machine is busy; 16,384 numbers take about as long.
inline int64_t& thread_grain() {
  static int64_t grain = 16384;
  return grain;
}

}  // namespace molkern
