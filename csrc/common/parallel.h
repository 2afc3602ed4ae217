// The one way into an OpenMP region: every loop of several threads goes through parallel_for.
//
// It costs nothing with one thread: even a region of one thread takes a good part of a microsecond
// to enter, which counts for small molecules. What a thread throws, an allocation that fails above
// all, is thrown again after the region; to leave a region by an exception would end the process.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>

namespace molkern {

// Compiled once, not again for arguments that are known somewhere: compilers choose anew each time
// which multiplications and additions to fuse.
#ifdef __clang__
#define MOLKERN_COMPILED_ONCE __attribute__((noinline))
#else
#define MOLKERN_COMPILED_ONCE __attribute__((noinline, noclone))
#endif

// The first exception of several threads.
class FirstError {
 public:
  // Within a catch block, of any thread.
  void keep() noexcept {
    if (!taken_.exchange(true)) error_ = std::current_exception();
  }
  // After all threads are done.
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::atomic<bool> taken_{false};
  std::exception_ptr error_;
};

// Results are the same bits for every number of threads only if all run the same instructions.
template <typename Function>
MOLKERN_COMPILED_ONCE void run_share(Function& function, int64_t first, int64_t last) {
  for (int64_t k = first; k < last; ++k) function(k);
}

// function(0) ... function(count - 1), in equal consecutive shares; throws the first exception that
// a share ended with.
template <typename Function>
void parallel_for(int threads, int64_t count, Function&& function) {
  const int64_t shares = std::min<int64_t>(threads, count);
  if (shares <= 1) return run_share(function, 0, count);
  FirstError error;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t share = 0; share < shares; ++share) {
    try {
      run_share(function, count * share / shares, count * (share + 1) / shares);
    } catch (...) {
      error.keep();
    }
  }
  error.rethrow();
}

}  // namespace molkern
