#pragma once
// What a component knows, as bytes in a row, and back: for states that are saved or forked.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "attend/tensor/error.h"

namespace attend {

class StateWriter {
 public:
  template <class T>
  requires std::is_trivially_copyable_v<T>
  void put(const T& value) { put_bytes(&value, sizeof value); }
  template <class T>
  requires std::is_trivially_copyable_v<T>
  void put(const std::vector<T>& values) {
    put(static_cast<int64_t>(values.size()));
    put_bytes(values.data(), values.size() * sizeof(T));
  }
  const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  void put_bytes(const void* data, size_t size) {
    const auto* from = static_cast<const std::byte*>(data);
    bytes_.insert(bytes_.end(), from, from + size);
  }
  std::vector<std::byte> bytes_;
};

// Bytes may be anything: what can't be is refused with Error(kFile), before anything is allocated for it.
class StateReader {
 public:
  explicit StateReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  template <class T>
  requires std::is_trivially_copyable_v<T> T get() {
    T value;
    take(&value, sizeof value);
    return value;
  }
  // At most `most` values.
  template <class T>
  requires std::is_trivially_copyable_v<T>
  void get(std::vector<T>& values, int64_t most) {
    const int64_t count = get<int64_t>();
    require(count >= 0 && count <= most && count <= static_cast<int64_t>(bytes_.size() / sizeof(T)));
    values.resize(static_cast<size_t>(count));
    take(values.data(), values.size() * sizeof(T));
  }
  static void require(bool good) {
    if (!good) throw Error(ErrorKind::kFile, "state", "policy", "", "is damaged: what it kept can't be");
  }
  void finish() const { require(bytes_.empty()); }

 private:
  void take(void* to, size_t size) {
    require(size <= bytes_.size());
    if (size) std::memcpy(to, bytes_.data(), size);
    bytes_ = bytes_.subspan(size);
  }
  std::span<const std::byte> bytes_;
};

}  // namespace attend
