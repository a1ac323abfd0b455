#pragma once
// Random GGUF blocks for tests of products.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "attend/simd/product.h"
#include "attend/tensor/dtype.h"

namespace attend::test {

inline constexpr WeightType kAllTypes[] = {WeightType::kF32,  WeightType::kF16,  WeightType::kBF16, WeightType::kQ8_0,
                                           WeightType::kQ4_1, WeightType::kQ5_0, WeightType::kQ4_K, WeightType::kQ6_K};

inline void store_f16(uint8_t* p, float v) {
  const F16 f = to_f16(v);
  std::memcpy(p, &f, 2);
}

// `n` rows of `k` columns: random bits, with scales that make values of about 1.
inline std::vector<uint8_t> random_blocks(WeightType type, int64_t n, int64_t k, std::mt19937& random) {
  const WeightFormat& format = format_of(type);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<uint8_t> bytes(static_cast<size_t>(n * k / format.block_elements * format.block_bytes));
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  for (size_t at = 0; at < bytes.size(); at += static_cast<size_t>(format.block_bytes)) {
    uint8_t* p = bytes.data() + at;
    const float value = uniform(random);
    const BF16 half = to_bf16(value);
    switch (type) {
      case WeightType::kF32:
        std::memcpy(p, &value, 4);
        break;
      case WeightType::kF16:
        store_f16(p, value);
        break;
      case WeightType::kBF16:
        std::memcpy(p, &half, 2);
        break;
      case WeightType::kQ8_0:
        store_f16(p, value / 64);
        break;
      case WeightType::kQ4_1:
        store_f16(p, value / 8);
        store_f16(p + 2, uniform(random));
        break;
      case WeightType::kQ5_0:
        store_f16(p, value / 16);
        break;
      case WeightType::kQ4_K:
        store_f16(p, value / 256);
        store_f16(p + 2, uniform(random) / 64);
        break;
      case WeightType::kQ6_K:
        store_f16(p + 208, value / 1024);
        break;
    }
  }
  return bytes;
}

// |d u| + |m| of every element, for bound::quantised_product. With u = 0 an element is m, so m of a block follows from
// the same block with its integers cleared.
inline std::vector<float> terms_of(WeightType type, const std::vector<uint8_t>& blocks, const std::vector<float>& w) {
  const int64_t header = type == WeightType::kQ4_1 ? 4 : type == WeightType::kQ4_K ? 16 : -1;
  std::vector<float> terms(w.size());
  for (size_t i = 0; i < w.size(); ++i) terms[i] = std::fabs(w[i]);
  if (header < 0) return terms;
  std::vector<uint8_t> cleared(blocks);
  const size_t size = static_cast<size_t>(format_of(type).block_bytes);
  for (size_t at = 0; at < cleared.size(); at += size)
    std::fill(cleared.begin() + static_cast<int64_t>(at) + header, cleared.begin() + static_cast<int64_t>(at + size),
              0);
  std::vector<float> m(w.size());
  dequantize(type, cleared.data(), static_cast<int64_t>(w.size()), m.data());
  for (size_t i = 0; i < w.size(); ++i) terms[i] = std::fabs(w[i] - m[i]) + std::fabs(m[i]);
  return terms;
}

}  // namespace attend::test
