#pragma once
// How a packed weight lies in memory: panels of 16 output rows, each contiguous, the last padded with zero rows.
//
// Quantised types: k / 32 blocks of 64-byte lines, then the scales of all blocks, rounded up to a line. A group is four
// neighbouring columns; block b holds groups g = 0..7. As unsigned integers (value + offset) of row r, column 4 g + c:
//   8 bits   line g, byte 4 r + c
//   4 bits   line g / 2, byte 4 r + c: group g even in the low, odd in the high nibble
//   5 bits   as 4, and line 4, byte 4 r + c: bit g is the fifth
//   6 bits   as 4, and line 4 + g / 4, byte 4 r + c: bits 2 (g % 4) and the next are the fifth and sixth
// A line of 8-bit groups is the operand of one 512-bit integer dot product, and a row of an AMX tile.
//
// Scales, [16] meaning one for each row:
//   Q8_0, Q5_0  a block: f16 d[16]
//   Q4_1        a block: f16 d[16], f16 m[16]
//   Q4_K        256 columns: f16 d[16], f16 dmin[16], u8 scale[8][16], u8 minimum[8][16]
//   Q6_K        256 columns: f16 d[16], i8 scale[16][16]
//
// F32, F16, BF16: [k][16].
#include <cstdint>

#include "attend/tensor/weight_type.h"

namespace attend {

inline constexpr int64_t kPanelRows = 16, kBlock = 32, kLine = 64;

struct PanelFormat {
  int64_t lines;        // of a block
  int bits, offset;     // value = integer - offset
  int group;            // columns that share a scale
  bool minimum;         // value = d * integer + m
  int64_t span;         // columns that one entry of scales covers
  int64_t scale_bytes;  // of such an entry
};

constexpr bool is_quantised(WeightType type) {
  return type != WeightType::kF32 && type != WeightType::kF16 && type != WeightType::kBF16;
}

constexpr PanelFormat panel_format(WeightType type) {
  switch (type) {
    case WeightType::kQ8_0:
      return {8, 8, 128, 32, false, 32, 32};
    case WeightType::kQ4_1:
      return {4, 4, 0, 32, true, 32, 64};
    case WeightType::kQ5_0:
      return {5, 5, 16, 32, false, 32, 32};
    case WeightType::kQ4_K:
      return {4, 4, 0, 32, true, 256, 320};
    case WeightType::kQ6_K:
      return {6, 6, 32, 16, false, 256, 288};
    default:
      return {};
  }
}

// Bytes of the integers of one panel, and of the whole panel.
constexpr int64_t panel_integer_bytes(WeightType type, int64_t k) {
  return k / kBlock * panel_format(type).lines * kLine;
}

constexpr int64_t panel_bytes(WeightType type, int64_t k) {
  if (type == WeightType::kF32) return k * kPanelRows * 4;
  if (!is_quantised(type)) return k * kPanelRows * 2;
  const PanelFormat f = panel_format(type);
  return panel_integer_bytes(type, k) + (k / f.span * f.scale_bytes + kLine - 1) / kLine * kLine;
}

}  // namespace attend
