// Memory on the CPU that is kept for the next use, and what goes on when there is none left: all
// that is idle goes back to the system, and the request is tried once more.
#pragma once

#include <cstddef>

namespace molkern {

// At least `bytes`, uninitialised, aligned to cache lines, or to large pages where there is one;
// throws std::bad_alloc.
void* allocate_kept(size_t bytes);
// For memory of allocate_kept(bytes): the same number.
void free_kept(void* data, size_t bytes);

// Whoever keeps memory says once how to give back what is idle; `drop` throws nothing.
void on_drop(void (*drop)());
// Hands all idle memory back to the system.
void drop_idle_memory();

}  // namespace molkern
