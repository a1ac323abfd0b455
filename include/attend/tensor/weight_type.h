#pragma once
// Types of stored weights: GGUF's names, numbers and block sizes of those that attend reads.
#include <cstdint>
#include <optional>
#include <string_view>

namespace attend {

enum class WeightType : uint8_t { kF32, kF16, kBF16, kQ8_0, kQ4_1, kQ5_0, kQ4_K, kQ6_K };

struct WeightFormat {
  WeightType type;
  std::string_view name;   // as GGUF writes it
  uint32_t gguf_type;      // ggml_type
  int64_t block_elements;  // along a row
  int64_t block_bytes;
};

inline constexpr WeightFormat kWeightFormats[] = {
    {WeightType::kF32, "F32", 0, 1, 4},        {WeightType::kF16, "F16", 1, 1, 2},
    {WeightType::kBF16, "BF16", 30, 1, 2},     {WeightType::kQ8_0, "Q8_0", 8, 32, 34},
    {WeightType::kQ4_1, "Q4_1", 3, 32, 20},    {WeightType::kQ5_0, "Q5_0", 6, 32, 22},
    {WeightType::kQ4_K, "Q4_K", 12, 256, 144}, {WeightType::kQ6_K, "Q6_K", 14, 256, 210},
};

constexpr const WeightFormat& format_of(WeightType type) {
  return kWeightFormats[static_cast<int>(type)];
}

}  // namespace attend
