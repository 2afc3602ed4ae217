#include "common/block_pool.h"

#include <cstdlib>
#include <new>

#include "common/memory.h"

namespace molkern {

namespace {
constexpr size_t most_idle = size_t{512} << 20;
}

// In steps of an eighth of the size, so that a list that grows a little finds its old block.
size_t BlockPool::rounded(size_t bytes) {
  size_t step = large_page;
  while (step * 16 <= bytes) step *= 2;
  return (bytes + step - 1) / step * step;
}

void* BlockPool::take(size_t bytes) {
  bytes = rounded(bytes);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (size_t k = idle_.size(); k-- > 0;) {  // the newest may still be in a cache
      if (idle_[k].bytes != bytes) continue;
      void* data = idle_[k].data;
      idle_.erase(idle_.begin() + static_cast<std::ptrdiff_t>(k));
      idle_bytes_ -= bytes;
      return data;
    }
  }
  void* fresh = std::aligned_alloc(large_page, bytes);
  if (!fresh) throw std::bad_alloc();
  prefer_large_pages(fresh, bytes);
  return fresh;
}

void BlockPool::give_back(void* data, size_t bytes) {
  bytes = rounded(bytes);
  if (bytes > most_idle_) return std::free(data);
  const std::lock_guard<std::mutex> lock(mutex_);
  while (idle_bytes_ + bytes > most_idle_) {
    std::free(idle_.front().data);
    idle_bytes_ -= idle_.front().bytes;
    idle_.erase(idle_.begin());
  }
  idle_.push_back({data, bytes});
  idle_bytes_ += bytes;
}

void BlockPool::drop_idle() {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const Block& block : idle_) std::free(block.data);
  idle_.clear();
  idle_bytes_ = 0;
}

BlockPool& block_pool() {
  static BlockPool* pool = new BlockPool(most_idle);
  return *pool;
}

}  // namespace molkern
