#pragma once
// An owning, 64-byte aligned block of memory.
#include <cstddef>
#include <cstdint>
#include <utility>

namespace attend {

class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t bytes);  // uninitialised; throws Error(kMemory)
  ~Buffer();
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // Keeps the first min(old, new) bytes. The strong guarantee: on failure nothing changes.
  void resize(int64_t bytes);

  std::byte* data() const { return data_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }
  int64_t bytes() const { return bytes_; }
  int64_t held() const;  // bytes that it takes from the system: whole pages where it is large

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace attend
