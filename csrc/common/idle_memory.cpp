#include "common/idle_memory.h"

#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#include "common/memory.h"

namespace molkern {

namespace {

constexpr size_t cache_line = 64;

struct Keepers {
  std::mutex mutex;
  std::vector<void (*)()> drops;
};

Keepers& keepers() {
  static Keepers* const all = new Keepers;  // tensors may outlive everything
  return *all;
}

#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)

// Large blocks are mapped by themselves: what is freed leaves the process at once, and the advice
// on large pages never concerns memory of others.
bool is_mapped(size_t bytes) { return bytes >= large_page; }

void* map(size_t bytes) {
  const size_t room = bytes + large_page;
  void* const found =
      mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED) return nullptr;
  const auto begin = reinterpret_cast<uintptr_t>(found);
  const uintptr_t data = (begin + large_page - 1) / large_page * large_page;
  constexpr uintptr_t page = 4096;  // at least; a rest below the system's pages stays mapped
  const uintptr_t end = (data + bytes + page - 1) / page * page;
  if (data > begin) munmap(found, data - begin);
  if (begin + room > end) munmap(reinterpret_cast<void*>(end), begin + room - end);
  return reinterpret_cast<void*>(data);
}

void unmap(void* data, size_t bytes) { munmap(data, bytes); }

#else

bool is_mapped(size_t) { return false; }
void* map(size_t) { return nullptr; }
void unmap(void*, size_t) {}

#endif

void* try_allocate(size_t bytes) {
  if (is_mapped(bytes)) return map(bytes);
  void* data = nullptr;
  return posix_memalign(&data, cache_line, bytes) == 0 ? data : nullptr;
}

}  // namespace

void* allocate_kept(size_t bytes) {
  void* data = try_allocate(bytes);
  if (!data) {
    drop_idle_memory();
    data = try_allocate(bytes);
  }
  if (!data) throw std::bad_alloc();
  prefer_large_pages(data, is_mapped(bytes) ? bytes : 0);
  return data;
}

void free_kept(void* data, size_t bytes) {
  if (is_mapped(bytes))
    unmap(data, bytes);
  else
    std::free(data);
}

void on_drop(void (*drop)()) {
  const std::lock_guard<std::mutex> lock(keepers().mutex);
  keepers().drops.push_back(drop);
}

void drop_idle_memory() {
  const std::lock_guard<std::mutex> lock(keepers().mutex);
  for (void (*drop)() : keepers().drops) drop();
}

}  // namespace molkern
