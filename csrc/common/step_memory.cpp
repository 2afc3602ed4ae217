#include "common/step_memory.h"

#include <algorithm>
#include <cstdlib>
#include <new>

#include "common/memory.h"

namespace molkern {

namespace {
thread_local StepMemory* entered = nullptr;

constexpr size_t smallest_piece = size_t{256} << 10;
constexpr size_t smallest_rest = 512;  // what is not worth splitting off

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }
}  // namespace

StepMemory* StepMemory::current() { return entered; }

void StepMemory::enter() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (pieces_.size() > 1 && in_use_ == 0) make_one();
  }
  outer_ = entered;
  entered = this;
}

void StepMemory::leave() { entered = outer_; }

void StepMemory::release() {
  bool unused;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    released_ = true;
    unused = in_use_ == 0;
  }
  if (unused) delete this;
}

StepMemory::~StepMemory() {
  for (const Piece& piece : pieces_) std::free(piece.first);
}

void* StepMemory::take(size_t bytes) {
  bytes = round_up(bytes, sizeof(Block)) + sizeof(Block);
  const std::lock_guard<std::mutex> lock(mutex_);
  Block* block = best_fit(bytes);
  if (!block) block = add_piece(bytes);
  remove(block);
  split(block, bytes);
  in_use_ += block->bytes;
  most_in_use_ = std::max(most_in_use_, in_use_);
  return block + 1;
}

void StepMemory::give_back(void* data) {
  Block* block = static_cast<Block*>(data) - 1;
  StepMemory* const owner = block->owner;
  bool unused;
  {
    const std::lock_guard<std::mutex> lock(owner->mutex_);
    owner->in_use_ -= block->bytes;
    owner->put(owner->join(block));
    unused = owner->released_ && owner->in_use_ == 0;
  }
  if (unused) delete owner;
}

size_t StepMemory::reserved() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return reserved_;
}

int64_t StepMemory::requests() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return requests_;
}

// A free block that fills a new piece of memory.
StepMemory::Block* StepMemory::add_piece(size_t bytes) {
  bytes = std::max(bytes, smallest_piece);
  const size_t alignment = bytes < large_page ? sizeof(Block) : large_page;
  bytes = round_up(bytes, alignment);
  void* const memory = std::aligned_alloc(alignment, bytes);
  if (!memory) throw std::bad_alloc();
  prefer_large_pages(memory, bytes);
  auto* block = new (memory) Block{this, bytes, nullptr, nullptr, nullptr, false, true};
  pieces_.push_back({block, bytes});
  reserved_ += bytes;
  ++requests_;
  put(block);
  return block;
}

// The smallest free block that is large enough: there are few, for neighbors are joined.
StepMemory::Block* StepMemory::best_fit(size_t bytes) const {
  Block* best = nullptr;
  for (Block* block = free_; block; block = block->next_free)
    if (block->bytes >= bytes && (!best || block->bytes < best->bytes)) best = block;
  return best;
}

// Leaves so many bytes in the block, and what is beyond free.
void StepMemory::split(Block* block, size_t bytes) {
  if (block->bytes < bytes + sizeof(Block) + smallest_rest) return;
  char* const end = reinterpret_cast<char*>(block) + bytes;
  auto* rest =
      new (end) Block{this, block->bytes - bytes, block, nullptr, nullptr, false, block->last};
  if (!rest->last) rest->next()->previous = rest;
  block->bytes = bytes;
  block->last = false;
  put(rest);
}

// One block of this and the free ones beside it, not in the list.
StepMemory::Block* StepMemory::join(Block* block) {
  const auto absorb = [](Block* left, Block* right) {
    left->bytes += right->bytes;
    left->last = right->last;
    if (!left->last) left->next()->previous = left;
  };
  if (!block->last && block->next()->free) {
    remove(block->next());
    absorb(block, block->next());
  }
  if (block->previous && block->previous->free) {
    Block* const left = block->previous;
    remove(left);
    absorb(left, block);
    block = left;
  }
  return block;
}

void StepMemory::put(Block* block) {
  block->free = true;
  block->previous_free = nullptr;
  block->next_free = free_;
  if (free_) free_->previous_free = block;
  free_ = block;
}

void StepMemory::remove(Block* block) {
  block->free = false;
  (block->previous_free ? block->previous_free->next_free : free_) = block->next_free;
  if (block->next_free) block->next_free->previous_free = block->previous_free;
}

// As much as was in use at a time, and a little; where that was not enough for the order in which
// blocks come and go, as much as there is.
void StepMemory::make_one() {
  const bool tried = made_for_ == most_in_use_;
  const size_t bytes = std::max(most_in_use_ + most_in_use_ / 16, tried ? reserved_ : 0);
  made_for_ = most_in_use_;
  for (const Piece& piece : pieces_) std::free(piece.first);
  pieces_.clear();
  free_ = nullptr;
  reserved_ = 0;
  add_piece(bytes);
}

}  // namespace molkern
