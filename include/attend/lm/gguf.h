#pragma once
// A GGUF v3 file, mapped and fully checked at opening: nothing read later can lie outside the file.
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "attend/tensor/weight_type.h"

namespace attend {

struct GgufTensor {
  std::string_view name;
  WeightType type;
  int rank;                      // 1..4
  std::array<int64_t, 4> shape;  // outermost first: [rows, columns] of a matrix; unused axes 1
  std::span<const std::byte> data;

  int64_t count() const { return shape[0] * shape[1] * shape[2] * shape[3]; }
};

class Gguf {
 public:
  // Throws Error(kFile) for a missing, truncated or malformed file, Error(kUnsupported) naming an unsupported tensor
  // type ("tensor type IQ2_XXS is not supported; supported: ...") or version.
  static Gguf open(const std::filesystem::path& path);
  // The same over bytes in memory, which must outlive the result.
  static Gguf parse(std::span<const std::byte> bytes, std::string name);

  Gguf(Gguf&&) noexcept;
  Gguf& operator=(Gguf&&) noexcept;
  ~Gguf();

  const std::string& name() const;  // the path, for messages
  std::span<const GgufTensor> tensors() const;
  const GgufTensor* find(std::string_view tensor) const;
  const GgufTensor& tensor(std::string_view name) const;  // throws Error(kFile) if absent

  // Metadata. The plain forms throw Error(kFile) if the key is absent, of another type, or out of range.
  bool has(std::string_view key) const;
  std::string_view text(std::string_view key) const;
  std::string_view text(std::string_view key, std::string_view fallback) const;
  int64_t integer(std::string_view key, int64_t min, int64_t max) const;
  int64_t integer(std::string_view key, int64_t min, int64_t max, int64_t fallback) const;
  double real(std::string_view key) const;
  double real(std::string_view key, double fallback) const;
  bool flag(std::string_view key, bool fallback) const;
  std::vector<std::string_view> texts(std::string_view key) const;
  std::vector<float> reals(std::string_view key) const;
  std::vector<int32_t> integers(std::string_view key) const;

  // Tells the kernel that mapped bytes are no longer needed (no effect on parsed memory).
  void release(std::span<const std::byte> bytes) const;

 private:
  struct State;
  explicit Gguf(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace attend
