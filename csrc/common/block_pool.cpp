#include "common/block_pool.h"

#include <algorithm>
#include <new>

#include "common/idle_memory.h"

namespace molkern {

namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr bool checked = true;  // every block as large as it is asked for, and never used again
#else
constexpr bool checked = false;
#endif

// Enough for the lists and gradients of some ten thousand atoms. What is larger costs a tenth more
// where it is made anew, and would be much to keep in a process of others.
constexpr size_t most_idle = checked ? 0 : size_t{128} << 20;
constexpr size_t smallest = 1024;

// Blocks have eight sizes from a power of two to the next, so that a list that grows a little finds
// its old block.
struct Size {
  size_t bytes, row = 0;

  explicit Size(size_t wanted) : bytes(wanted) {
    if (checked) return;
    bytes = std::max(bytes, smallest);
    size_t step = smallest / 8;
    for (; step * 16 <= bytes; row += 8) step *= 2;
    const size_t steps = (bytes + step - 1) / step;
    bytes = steps * step;
    row += steps - 8;
  }
};

}  // namespace

void* BlockPool::take(size_t bytes) {
  if (bytes > SIZE_MAX / 4) throw std::bad_alloc();
  const Size size(bytes + sizeof(Block));
  void* memory = take_idle(size.row, size.bytes);
  if (!memory) memory = allocate_kept(size.bytes);
  return new (memory) Block{size.bytes, bytes} + 1;
}

// Locks are tried only: who would wait, for ever in a process that was forked meanwhile, does
// without.

void* BlockPool::take_idle(size_t row, size_t bytes) {
  const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  if (!lock || row >= idle_.size() || idle_[row].empty()) return nullptr;
  void* const memory = idle_[row].back().memory;  // the newest may still be in a cache
  idle_[row].pop_back();
  idle_bytes_ -= bytes;
  return memory;
}

void BlockPool::give_back(void* data) {
  Block* const block = static_cast<Block*>(data) - 1;
  const size_t bytes = block->bytes;
  if (!keep(block, bytes)) free_kept(block, bytes);
}

bool BlockPool::keep(void* memory, size_t bytes) {
  const size_t row = Size(bytes).row;
  if (bytes > most_idle_ || row >= idle_.size()) return false;
  const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  if (!lock) return false;
  try {
    idle_[row].push_back({memory, bytes, clock_++});
  } catch (const std::bad_alloc&) {
    return false;
  }
  idle_bytes_ += bytes;
  while (idle_bytes_ > most_idle_) drop_oldest();
  return true;
}

void BlockPool::drop_oldest() {
  const auto age = [](const Row& row) { return row.empty() ? INT64_MAX : row.front().since; };
  Row& row = *std::min_element(idle_.begin(), idle_.end(),
                               [&](const Row& a, const Row& b) { return age(a) < age(b); });
  free_kept(row.front().memory, row.front().bytes);
  idle_bytes_ -= row.front().bytes;
  row.erase(row.begin());
}

size_t BlockPool::size_of(const void* data) {
  return (static_cast<const Block*>(data) - 1)->wanted;
}

void BlockPool::drop_idle() {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (Row& row : idle_) {
    for (const Idle& idle : row) free_kept(idle.memory, idle.bytes);
    row.clear();
  }
  idle_bytes_ = 0;
}

BlockPool& block_pool() {
  static BlockPool* const pool = [] {
    auto* made = new BlockPool(most_idle);
    on_drop([] { block_pool().drop_idle(); });
    return made;
  }();
  return *pool;
}

}  // namespace molkern
