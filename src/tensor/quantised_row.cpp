#include "attend/tensor/quantised_row.h"

#include <algorithm>
#include <cmath>
#include <cstring>

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

}  // namespace

void quantise_row(const float* x, int64_t n, DType type, void* row) {
  auto* integers = static_cast<uint8_t*>(row);
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

float quantised_element(const void* row, int64_t n, DType type, int64_t i) {
  const auto* integers = static_cast<const uint8_t*>(row);
  const int64_t block = i / kQuantisedBlock, within = i % kQuantisedBlock;
  F16 scale;
  std::memcpy(&scale, integers + (type == DType::kQ8_0 ? n : n / 2) + block * 2, 2);
  if (type == DType::kQ8_0) return static_cast<float>(static_cast<int8_t>(integers[i])) * to_f32(scale);
  const int pair = integers[block * kHalf + within % kHalf];
  return static_cast<float>((within < kHalf ? pair & 15 : pair >> 4) - 8) * to_f32(scale);
}

void dequantise_row(const void* row, int64_t n, DType type, float* x) {
  for (int64_t i = 0; i < n; ++i) x[i] = quantised_element(row, n, type, i);
}

}  // namespace attend
