// Memory: large pages, and looking ahead.
//
// Large pages for large arrays: the first touch of fresh memory costs a page fault every 4 KiB, as
// much as filling it does several times over; with 2 MiB pages it is next to nothing.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace molkern {

constexpr size_t large_page = size_t{2} << 20;

// A hint, for memory that will be filled; small arrays are left alone.
inline void prefer_large_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 4096;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  if (begin + large_page <= end)
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Streams that outgrow the caches: asks for what lies so many bytes ahead. It need not exist.
template <typename T>
inline void prefetch_to_read(const T* data, intptr_t bytes_ahead) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<intptr_t>(data) + bytes_ahead));
}
template <typename T>
inline void prefetch_to_write(T* data, intptr_t bytes_ahead) {
  __builtin_prefetch(reinterpret_cast<void*>(reinterpret_cast<intptr_t>(data) + bytes_ahead), 1);
}

}  // namespace molkern
