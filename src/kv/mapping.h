#pragma once
// Addresses whose memory comes from the system a page at a time, on first use, and can be given back.
#include <cstddef>
#include <cstdint>
#include <utility>

namespace attend::kv {

int64_t system_page();  // bytes

class Mapping {
 public:
  Mapping() = default;
  // Reads as zero; no memory is held, nor promised, until it is touched. Begins with a page of the system, and none is
  // a huge one. Throws Error(kMemory).
  explicit Mapping(int64_t bytes);
  ~Mapping();
  Mapping(Mapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

  // Memory of [begin, end), multiples of system_page(), goes back to the system.
  void give_back(int64_t begin, int64_t end);

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace attend::kv
