// Blocks of memory on the CPU that are kept for the next result of about their size. Large ones,
// for fresh memory costs more than filling it does: the system clears every page before it hands it
// out. Small ones, for a step of a small molecule makes a hundred of them, too large for the fast
// ways of malloc. Blocks serve molkern's operators alone; torch's own allocator stays as it is.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

namespace molkern {

class BlockPool {
 public:
  // Idle blocks hold at most so many bytes; the oldest are freed first.
  explicit BlockPool(size_t most_idle) : most_idle_(most_idle) {}

  // At least `bytes`, uninitialised, aligned to cache lines; throws std::bad_alloc.
  void* take(size_t bytes);
  // For what take() gave, from any thread.
  void give_back(void* data);
  // What take() was asked for.
  static size_t size_of(const void* data);
  // Hands idle blocks back to the system.
  void drop_idle();

 private:
  // Stands before the data.
  struct alignas(64) Block {
    size_t bytes;   // with this header
    size_t wanted;  // by who took it
  };
  struct Idle {
    void* memory;
    size_t bytes;
    int64_t since;
  };
  using Row = std::vector<Idle>;  // oldest first

  void* take_idle(size_t row, size_t bytes);
  bool keep(void* memory, size_t bytes);
  void drop_oldest();

  const size_t most_idle_;
  std::mutex mutex_;
  std::array<Row, 160> idle_;  // by size, up to a gigabyte
  size_t idle_bytes_ = 0;
  int64_t clock_ = 0;
};

// The one of this process; never destroyed, for tensors may outlive everything.
BlockPool& block_pool();

}  // namespace molkern
