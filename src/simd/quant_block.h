#pragma once
// One block of each quantised GGUF type: integers and scales as stored. Layouts are those of the GGUF format.
#include <cstdint>
#include <cstring>

#include "attend/tensor/dtype.h"
#include "attend/tensor/weight_type.h"

namespace attend::quant {

inline uint32_t load32(const uint8_t* p) {
  uint32_t v;
  std::memcpy(&v, p, 4);
  return v;
}

inline F16 load_f16(const uint8_t* p) {
  F16 v;
  std::memcpy(&v, p, 2);
  return v;
}

// Bits 0, 4, 8, .. 28 of `v` as one byte.
constexpr uint32_t gather_fourths(uint32_t v) {
  v &= 0x11111111u;
  v = (v | v >> 3) & 0x03030303u;
  v = (v | v >> 6) & 0x000f000fu;
  return (v | v >> 12) & 0xffu;
}

// Integers of columns 4 g .. 4 g + 3 of 32-column block `b` of the (super)block at `p`, one a byte, offset included
// (all are unsigned). Of Q5_0 and Q6_K the low four bits.
template <WeightType kType>
inline uint32_t low_group(const uint8_t* p, int64_t b, int64_t g) {
  constexpr uint32_t kLow = 0x0f0f0f0fu;
  if constexpr (kType == WeightType::kQ8_0) return load32(p + 2 + 4 * g) ^ 0x80808080u;
  if constexpr (kType == WeightType::kQ4_1) return load32(p + 4 + 4 * (g % 4)) >> (g < 4 ? 0 : 4) & kLow;
  if constexpr (kType == WeightType::kQ5_0) return load32(p + 6 + 4 * (g % 4)) >> (g < 4 ? 0 : 4) & kLow;
  if constexpr (kType == WeightType::kQ4_K) return load32(p + 16 + b / 2 * 32 + 4 * g) >> (b % 2 * 4) & kLow;
  if constexpr (kType == WeightType::kQ6_K)
    return load32(p + b / 4 * 64 + b % 2 * 32 + 4 * g) >> (b % 4 / 2 * 4) & kLow;
}

// The bits above those four: one (Q5_0) or two (Q6_K) at the bottom of each byte.
template <WeightType kType>
inline uint32_t high_group(const uint8_t* p, int64_t b, int64_t g) {
  if constexpr (kType == WeightType::kQ5_0) {
    const uint32_t bits = load32(p + 2) >> (4 * g);
    return (bits & 1) | (bits & 2) << 7 | (bits & 4) << 14 | (bits & 8) << 21;
  }
  if constexpr (kType == WeightType::kQ6_K) return load32(p + 128 + b / 4 * 32 + 4 * g) >> (b % 4 * 2) & 0x03030303u;
  return 0;
}

// Six-bit scale and minimum of block b of a Q4_K superblock.
inline void q4_k_scale(const uint8_t* p, int64_t b, uint8_t& scale, uint8_t& minimum) {
  const uint8_t* s = p + 4;
  if (b < 4) {
    scale = s[b] & 63;
    minimum = s[b + 4] & 63;
  } else {
    scale = static_cast<uint8_t>((s[b + 4] & 15) | (s[b - 4] >> 6 << 4));
    minimum = static_cast<uint8_t>((s[b + 4] >> 4) | (s[b] >> 6 << 4));
  }
}

}  // namespace attend::quant
