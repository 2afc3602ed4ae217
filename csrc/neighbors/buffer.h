// Memory that is not initialised and is kept between uses.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

#include "common/memory.h"

namespace molkern {

class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Buffer& operator=(Buffer&&) = delete;
  ~Buffer() { std::free(data_); }

  // Room for `count` values; what was there may be lost.
  template <typename T>
  T* get(size_t count) {
    static_assert(std::is_trivially_copyable_v<T>);
    if (count * sizeof(T) > bytes_) {
      std::free(std::exchange(data_, nullptr));
      bytes_ = 0;
      allocate(count * sizeof(T));
    }
    return static_cast<T*>(data_);
  }

  // Room for `count` values, at least; what was there stays.
  template <typename T>
  T* grow(size_t count) {
    static_assert(std::is_trivially_copyable_v<T>);
    if (count * sizeof(T) > bytes_) allocate(count * sizeof(T));
    return static_cast<T*>(data_);
  }

  size_t bytes() const { return bytes_; }

 private:
  // A little more than asked for, so that growing step by step copies little.
  void allocate(size_t bytes) {
    bytes += bytes / 4 + 1024;
    const size_t alignment = bytes < large_page ? 64 : large_page;
    bytes = (bytes + alignment - 1) / alignment * alignment;
    void* fresh = std::aligned_alloc(alignment, bytes);
    if (!fresh) throw std::bad_alloc();
    prefer_large_pages(fresh, bytes);
    if (bytes_) std::memcpy(fresh, data_, bytes_);
    std::free(data_);
    data_ = fresh;
    bytes_ = bytes;
  }

  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace molkern
