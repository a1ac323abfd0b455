#pragma once
// Writes GGUF files piece by piece, well-formed or not.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "attend/tensor/weight_type.h"

namespace attend::test {

class GgufWriter {
 public:
  // Bytes as they are, for values that no method below writes.
  void raw_key(std::string_view key, uint32_t type, std::string_view value) {
    ++keys_;
    put_text(head_, key);
    put(head_, type);
    head_.append(value);
  }

  void text(std::string_view key, std::string_view value) {
    std::string bytes;
    put_text(bytes, value);
    raw_key(key, 8, bytes);
  }
  void u32(std::string_view key, uint32_t value) { number(key, 4, value); }
  void i64(std::string_view key, int64_t value) { number(key, 11, value); }
  void f32(std::string_view key, float value) { number(key, 6, value); }
  void flag(std::string_view key, bool value) { number(key, 7, static_cast<uint8_t>(value)); }

  void texts(std::string_view key, const std::vector<std::string>& values) {
    std::string bytes = array_head(8, values.size());
    for (const std::string& value : values) put_text(bytes, value);
    raw_key(key, 9, bytes);
  }
  void reals(std::string_view key, const std::vector<float>& values) {
    std::string bytes = array_head(6, values.size());
    for (float value : values) put(bytes, value);
    raw_key(key, 9, bytes);
  }
  void integers(std::string_view key, const std::vector<int32_t>& values) {
    std::string bytes = array_head(5, values.size());
    for (int32_t value : values) put(bytes, value);
    raw_key(key, 9, bytes);
  }

  // `shape` is outermost first. Tensors lie one after another at multiples of `alignment`.
  void tensor(std::string_view name, WeightType type, const std::vector<int64_t>& shape, std::string_view data) {
    raw_tensor(name, format_of(type).gguf_type, shape, data_.size());
    data_.append(data);
    data_.resize((data_.size() + alignment - 1) / alignment * alignment);
  }
  void tensor(std::string_view name, const std::vector<int64_t>& shape, std::span<const float> values) {
    tensor(name, WeightType::kF32, shape, {reinterpret_cast<const char*>(values.data()), values.size_bytes()});
  }
  // Only the entry, with any type and place.
  void raw_tensor(std::string_view name, uint32_t type, const std::vector<int64_t>& shape, uint64_t offset) {
    ++tensors_;
    put_text(infos_, name);
    put(infos_, static_cast<uint32_t>(shape.size()));
    for (auto extent = shape.rbegin(); extent != shape.rend(); ++extent) put(infos_, static_cast<uint64_t>(*extent));
    put(infos_, type);
    put(infos_, offset);
  }

  std::string bytes() const {
    std::string out = "GGUF";
    put(out, version);
    put(out, tensors_ + extra_tensors);
    put(out, keys_ + extra_keys);
    out += head_ + infos_;
    if (tensors_) out.resize((out.size() + alignment - 1) / alignment * alignment);
    return out + data_;
  }

  void write(const std::filesystem::path& path) const {
    const std::string out = bytes();
    std::ofstream(path, std::ios::binary).write(out.data(), static_cast<std::streamsize>(out.size()));
  }

  uint32_t version = 3;
  uint64_t extra_tensors = 0, extra_keys = 0;  // claimed, not there
  size_t alignment = 32;                       // write the key general.alignment yourself

  template <class T>
  static void put(std::string& out, T value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof(T));
  }
  static void put_text(std::string& out, std::string_view value) {
    put(out, static_cast<uint64_t>(value.size()));
    out.append(value);
  }
  static std::string array_head(uint32_t element, uint64_t count) {
    std::string out;
    put(out, element);
    put(out, count);
    return out;
  }

 private:
  template <class T>
  void number(std::string_view key, uint32_t type, T value) {
    raw_key(key, type, {reinterpret_cast<const char*>(&value), sizeof(T)});
  }

  std::string head_, infos_, data_;
  uint64_t keys_ = 0, tensors_ = 0;
};

inline std::span<const std::byte> as_bytes(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

}  // namespace attend::test
