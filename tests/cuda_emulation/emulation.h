// Runs a CUDA kernel on the host: blocks one after another, the threads of a block as fibers that
// give way to each other at barriers, warp exchanges and (in shuffled order) atomics.
//
// What a GPU would not forgive is an error here, a std::runtime_error out of run():
//   - a barrier that some thread of the block never reaches, or reaches on another source line;
//   - a warp exchange whose mask names a lane that is absent or has exited, leaves out the caller,
//     or whose lanes never meet;
//   - a launch that no device of compute capability 7.5 could serve.
// Shared memory is filled with a pattern that reads as NaN before every block, and so is what a
// shuffle reads from a lane outside its mask. MOLKERN_EMULATION_SEED=1, 2, ... shuffles the order
// of blocks and threads; without it, or with 0, the order is the natural one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "emulated_vectors.h"

namespace cuda_emulation {

// Whether the emulated kernels are to run: not if MOLKERN_EMULATE_CUDA=0 when this is first asked.
bool wanted();

// Names of the kernels launched by this process so far, sorted.
std::vector<std::string> launched();

void run(const char* kernel_name, dim3 grid, dim3 block, size_t shared_bytes,
         void (*thread)(const void*), const void* closure);

template <typename Closure>
void run(const char* kernel_name, dim3 grid, dim3 block, size_t shared_bytes,
         const Closure& closure) {
  run(
      kernel_name, grid, block, shared_bytes,
      [](const void* data) { (*static_cast<const Closure*>(data))(); }, &closure);
}

// Raises the limit of dynamic shared memory above the 48 KiB that every launch may use.
void allow_dynamic_shared(size_t bytes);

// The dynamic shared memory of the running block.
void* dynamic_shared();

// One static allocation of shared memory: one of these exists for every shared type.
struct SharedSlot {
  size_t bytes;
  void* memory = nullptr;
  uint64_t block = 0;  // for which it was last poisoned

  explicit SharedSlot(size_t bytes);
  ~SharedSlot();
  void* get();  // poisons it at the first use in a block
};

template <typename T>
T& block_shared() {
  static SharedSlot slot(sizeof(T));
  return *static_cast<T*>(slot.get());
}

// In shuffled order, now and then lets other threads of the block run.
void maybe_yield();

void barrier(int line);
int barrier_count(int predicate, int line);

enum class Exchange { sync, shuffle, vote, match };

// Waits until all lanes of the mask are here; returns what `source` (a lane) brought for a shuffle,
// the lanes that brought something other than zero for a vote, the lanes that brought the same for
// a match.
uint64_t exchange(Exchange kind, unsigned mask, uint64_t value, int source, int line);

int lane();

}  // namespace cuda_emulation
