// Memory for a computation that is done again and again. Within a step every tensor on the CPU that
// the thread makes lies in it; what a step gives back serves the next one. After a step or two it
// is one piece, as large as a step needs at its most, and no step asks the system for memory again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

namespace molkern {

class StepMemory {
 public:
  // Freed by release() and the last block, whichever is later.
  static StepMemory* create() { return new StepMemory; }
  void release();

  // Between these the thread's tensors come from here. At the start pieces are made into one, if
  // nothing lies in them.
  void enter();
  void leave();
  // The one that this thread has entered, or null.
  static StepMemory* current();

  // Uninitialised, aligned to cache lines; throws std::bad_alloc.
  void* take(size_t bytes);
  // For a block of take(), from any thread.
  static void give_back(void* data);

  size_t reserved() const;   // bytes held, in use or not
  int64_t requests() const;  // how often the system was asked for memory

 private:
  // Stands before every block; blocks of a piece lie side by side.
  struct alignas(64) Block {
    StepMemory* owner;
    size_t bytes;     // with this header
    Block* previous;  // in memory, or null
    Block *next_free, *previous_free;
    bool free, last;  // last: of its piece

    Block* next() { return reinterpret_cast<Block*>(reinterpret_cast<char*>(this) + bytes); }
  };
  struct Piece {
    Block* first;
    size_t bytes;
  };

  StepMemory() = default;
  ~StepMemory();
  Block* add_piece(size_t bytes);
  Block* best_fit(size_t bytes) const;
  void split(Block* block, size_t bytes);
  Block* join(Block* block);
  void put(Block* block);
  void remove(Block* block);
  void make_one();

  mutable std::mutex mutex_;
  std::vector<Piece> pieces_;
  Block* free_ = nullptr;
  size_t in_use_ = 0, most_in_use_ = 0, reserved_ = 0;
  int64_t requests_ = 0;
  size_t made_for_ = 0;  // most_in_use_ when pieces were last made one
  bool released_ = false;
  StepMemory* outer_ = nullptr;
};

}  // namespace molkern
