// Memory that is not initialised and is kept between uses.
#pragma once

#include <cstddef>
#include <cstring>
#include <type_traits>
#include <utility>

#include "common/idle_memory.h"

namespace molkern {

class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Buffer& operator=(Buffer&&) = delete;
  ~Buffer() { free_data(); }

  // Room for `count` values; what was there may be lost.
  template <typename T>
  T* get(size_t count) {
    static_assert(std::is_trivially_copyable_v<T>);
    if (count * sizeof(T) > bytes_) {
      free_data();
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
    void* const fresh = allocate_kept(bytes);
    if (bytes_) std::memcpy(fresh, data_, bytes_);
    free_data();
    data_ = fresh;
    bytes_ = bytes;
  }

  void free_data() {
    if (data_) free_kept(std::exchange(data_, nullptr), std::exchange(bytes_, 0));
  }

  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace molkern
