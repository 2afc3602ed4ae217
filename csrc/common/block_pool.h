// Large blocks of memory on the CPU that are kept for the next result of about their size. Fresh
// memory costs more than filling it does: the system clears every page before it hands it out. A
// loop that makes a neighbor list or a gradient in every step would pay that in every step.
#pragma once

#include <cstddef>
#include <mutex>
#include <vector>

namespace molkern {

class BlockPool {
 public:
  // Idle blocks hold at most so many bytes; the oldest are freed first.
  explicit BlockPool(size_t most_idle) : most_idle_(most_idle) {}

  // At least `bytes`, uninitialised, aligned to large pages; throws std::bad_alloc.
  void* take(size_t bytes);
  // For a block of take(bytes): the same number.
  void give_back(void* data, size_t bytes);
  // Hands idle blocks back to the system.
  void drop_idle();

 private:
  struct Block {
    void* data;
    size_t bytes;
  };
  static size_t rounded(size_t bytes);

  const size_t most_idle_;
  std::mutex mutex_;
  std::vector<Block> idle_;  // oldest first
  size_t idle_bytes_ = 0;
};

// The one of this process; never destroyed, for tensors may outlive everything.
BlockPool& block_pool();

}  // namespace molkern
