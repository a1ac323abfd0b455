#include "attend/tensor/quantised_row.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace attend {
namespace {

constexpr int64_t kHalf = kQuantisedBlock / 2;
constexpr uint16_t kNan = 0x7e00;

struct Scale {
  F16 stored;
  float inverse;  // of the scale before it was rounded; 0 where the stored one is 0 or NaN
};

Scale scale_of(float d, bool finite) {
  const F16 stored = to_f16(d);
  const uint32_t magnitude = stored.bits & 0x7fffu;
  if (!finite || magnitude >= 0x7c00u) return {{kNan}, 0};
  return {stored, magnitude == 0 ? 0 : 1 / d};
}

bool all_finite(const float* x) {
  return std::all_of(x, x + kQuantisedBlock, [](float v) { return std::isfinite(v); });
}

void quantise_8(const float* x, uint8_t* integers, Scale scale) {
  for (int64_t i = 0; i < kQuantisedBlock; ++i)
    integers[i] = static_cast<uint8_t>(scale.inverse == 0 ? 0 : static_cast<int>(std::round(x[i] * scale.inverse)));
}

void quantise_4(const float* x, uint8_t* integers, Scale scale) {
  auto quantised = [&](float v) {
    return scale.inverse == 0 ? 8 : std::min(15, static_cast<int>(v * scale.inverse + 8.5f));
  };
  for (int64_t i = 0; i < kHalf; ++i)
    integers[i] = static_cast<uint8_t>(quantised(x[i]) | quantised(x[i + kHalf]) << 4);
}

// s and z of what lies between two ends, and how it is coded by them.
struct Affine {
  F16 scale, offset;
  float inverse, z;
  int levels;

  Affine(float low, float high, bool finite, int bits) : levels((1 << bits) - 1) {
    offset = to_f16(low);
    scale = to_f16((high - low) / static_cast<float>(levels));
    if (!finite || (offset.bits & 0x7fffu) >= 0x7c00u || (scale.bits & 0x7fffu) >= 0x7c00u) scale = offset = F16{kNan};
    const float s = to_f32(scale);
    z = to_f32(offset);
    inverse = s > 0 ? 1 / s : 0;  // not where s is NaN
    if (inverse == 0) z = 0;
  }
  int code(float x) const {
    return inverse == 0 ? 0 : static_cast<int>(std::clamp((x - z) * inverse + 0.5f, 0.0f, static_cast<float>(levels)));
  }
};

// Integers of up to 4 bits: where element i lies among those of a row.
void put(uint8_t* integers, int bits, int64_t i, int code) {
  if (bits == 4) {
    integers[i / kQuantisedBlock * kHalf + i % kHalf] |=
        static_cast<uint8_t>(i % kQuantisedBlock < kHalf ? code : code << 4);
  } else {
    integers[i / 4] |= static_cast<uint8_t>(code << (i % 4 * 2));
  }
}
int get(const uint8_t* integers, int bits, int64_t i) {
  if (bits == 8) return static_cast<int8_t>(integers[i]);
  if (bits == 2) return integers[i / 4] >> (i % 4 * 2) & 3;
  const int pair = integers[i / kQuantisedBlock * kHalf + i % kHalf];
  return i % kQuantisedBlock < kHalf ? pair & 15 : pair >> 4;
}

void quantise_affine(const float* x, int64_t n, int bits, uint8_t* row) {
  const int64_t integers = n * bits / 8, blocks = n / kQuantisedBlock;
  std::fill_n(row, integers, uint8_t{0});
  for (int64_t b = 0; b < blocks; ++b) {
    const float* block = x + b * kQuantisedBlock;
    const auto [low, high] = std::minmax_element(block, block + kQuantisedBlock);
    const Affine affine(*low, *high, all_finite(block), bits);
    for (int64_t i = 0; i < kQuantisedBlock; ++i) put(row, bits, b * kQuantisedBlock + i, affine.code(block[i]));
    std::memcpy(row + integers + b * 2, &affine.scale, 2);
    std::memcpy(row + integers + (blocks + b) * 2, &affine.offset, 2);
  }
}

float half_at(const uint8_t* p) {
  F16 half;
  std::memcpy(&half, p, 2);
  return to_f32(half);
}

}  // namespace

void quantise_row(const float* x, int64_t n, DType type, void* row) {
  auto* integers = static_cast<uint8_t*>(row);
  if (type == DType::kQ4_1 || type == DType::kQ2_1) return quantise_affine(x, n, code_bits(type), integers);
  uint8_t* scales = integers + (type == DType::kQ8_0 ? n : n / 2);
  for (int64_t b = 0; b < n / kQuantisedBlock; ++b) {
    const float* block = x + b * kQuantisedBlock;
    float largest = 0;  // signed: the first of largest magnitude
    for (int64_t i = 0; i < kQuantisedBlock; ++i)
      if (std::fabs(block[i]) > std::fabs(largest)) largest = block[i];
    const bool eight = type == DType::kQ8_0;
    const Scale scale = scale_of(eight ? std::fabs(largest) / 127 : largest / -8, all_finite(block));
    if (eight) {
      quantise_8(block, integers + b * kQuantisedBlock, scale);
    } else {
      quantise_4(block, integers + b * kHalf, scale);
    }
    std::memcpy(scales + b * 2, &scale.stored, 2);
  }
}

void quantise_channels(const float* x, int64_t rows, int64_t n, DType type, F16* scale, F16* offset, void* coded) {
  auto* integers = static_cast<uint8_t*>(coded);
  const int bits = code_bits(type);
  const int64_t row = row_bytes(type, n);
  std::fill_n(integers, rows * row, uint8_t{0});
  for (int64_t c = 0; c < n; ++c) {
    float low = std::numeric_limits<float>::infinity(), high = -low;
    bool finite = true;
    for (int64_t r = 0; r < rows; ++r) {
      const float v = x[r * n + c];
      low = std::min(low, v), high = std::max(high, v), finite &= std::isfinite(v);
    }
    const Affine affine(low, high, finite, bits);
    for (int64_t r = 0; r < rows; ++r) put(integers + r * row, bits, c, affine.code(x[r * n + c]));
    scale[c] = affine.scale;
    offset[c] = affine.offset;
  }
}

float quantised_element(const void* row, int64_t n, DType type, int64_t i) {
  const auto* integers = static_cast<const uint8_t*>(row);
  const int bits = code_bits(type);
  const uint8_t* scales = integers + n * bits / 8;
  const int64_t block = i / kQuantisedBlock;
  const float scale = half_at(scales + block * 2);
  const int code = get(integers, bits, i);
  if (type == DType::kQ8_0) return static_cast<float>(code) * scale;
  if (type == DType::kQ4_0) return static_cast<float>(code - 8) * scale;
  return static_cast<float>(code) * scale + half_at(scales + (n / kQuantisedBlock + block) * 2);
}

void dequantise_row(const void* row, int64_t n, DType type, float* x) {
  for (int64_t i = 0; i < n; ++i) x[i] = quantised_element(row, n, type, i);
}

float element_of(const RowRun& rows, int64_t r, int64_t n, int64_t i) {
  const void* row = rows.row(r);
  if (is_by_channel(rows.type))
    return static_cast<float>(get(static_cast<const uint8_t*>(row), code_bits(rows.type), i)) * to_f32(rows.scale[i]) +
           to_f32(rows.offset[i]);
  if (is_quantised(rows.type)) return quantised_element(row, n, rows.type, i);
  if (rows.type == DType::kF16) return to_f32(static_cast<const F16*>(row)[i]);
  if (rows.type == DType::kBF16) return to_f32(static_cast<const BF16*>(row)[i]);
  return static_cast<const float*>(row)[i];
}

}  // namespace attend
