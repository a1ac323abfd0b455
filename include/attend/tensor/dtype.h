#pragma once
// Element types of views and of stored keys, and scalar conversions of the 16-bit floats (round to nearest even; NaN
// stays NaN).
#include <bit>
#include <cstdint>
#include <string_view>

namespace attend {

// From kQ8_0 on: quantised rows (attend/tensor/quantised_row.h), which key views carry and arrays can't. The last two
// are keys alone, whose scales and offsets lie beside them, one a channel.
enum class DType : uint8_t { kF32, kF16, kBF16, kF64, kI32, kI64, kBool, kQ8_0, kQ4_0, kQ4_1, kQ2_1, kQ4_C, kQ2_C };

inline constexpr int64_t kQuantisedBlock = 32;  // elements that share a scale

constexpr bool is_quantised(DType type) {
  return type >= DType::kQ8_0;
}
constexpr bool is_by_channel(DType type) {
  return type == DType::kQ4_C || type == DType::kQ2_C;
}
// Bits of the integers of a quantised type.
constexpr int code_bits(DType type) {
  if (type == DType::kQ8_0) return 8;
  return type == DType::kQ2_1 || type == DType::kQ2_C ? 2 : 4;
}

// Bytes of an element, which is what strides count in; 1 for quantised rows, whose strides are in bytes.
constexpr int64_t size_of(DType type) {
  switch (type) {
    case DType::kF64:
    case DType::kI64:
      return 8;
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kBool:
    case DType::kQ8_0:
    case DType::kQ4_0:
    case DType::kQ4_1:
    case DType::kQ2_1:
    case DType::kQ4_C:
    case DType::kQ2_C:
      return 1;
  }
  return 0;
}

// Bytes of a row; of quantised types a multiple of 32 elements.
constexpr int64_t row_bytes(DType type, int64_t elements) {
  if (!is_quantised(type)) return elements * size_of(type);
  const int64_t integers = elements * code_bits(type) / 8, blocks = elements / kQuantisedBlock;
  if (is_by_channel(type)) return integers;
  return integers + blocks * (type == DType::kQ4_1 || type == DType::kQ2_1 ? 4 : 2);
}

constexpr std::string_view name_of(DType type) {
  constexpr std::string_view names[] = {"f32",  "f16",  "bf16", "f64",  "i32",  "i64", "bool",
                                        "q8_0", "q4_0", "q4_1", "q2_1", "q4_c", "q2_c"};
  return names[static_cast<int>(type)];
}

struct F16 {
  uint16_t bits;
};
struct BF16 {
  uint16_t bits;
};

constexpr float to_f32(BF16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}

// Without branches, so that loops of it become vectors, and without denormals, which count as zero in tasks of
// parallel_for().
constexpr float to_f32(F16 x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  const uint32_t normal = (magnitude << 13) + ((magnitude >= 0x7c00u ? 224u : 112u) << 23);
  const uint32_t subnormal = std::bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  return std::bit_cast<float>(sign | (magnitude < 0x400u ? subnormal : normal));
}

constexpr BF16 to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>(bits >> 16 | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

constexpr F16 to_f16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffffu;
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  auto with_sign = [sign](uint32_t m) { return F16{static_cast<uint16_t>(sign | m)}; };
  if (magnitude > 0x7f800000u) return with_sign(0x7e00u | (magnitude >> 13 & 0x3ffu));
  if (magnitude >= 0x477ff000u) return with_sign(0x7c00u);  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {                            // below 2^-14: the sum rounds at 2^-24
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return with_sign(std::bit_cast<uint32_t>(shifted) - 0x3f000000u);
  }
  return with_sign((magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13);
}

}  // namespace attend
