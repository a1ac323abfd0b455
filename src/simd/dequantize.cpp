#include <fmt/format.h>

#include <cmath>

#include "attend/simd/product.h"
#include "attend/tensor/error.h"
#include "simd/panel.h"
#include "simd/quant_block.h"

namespace attend {
namespace {

enum class Wanted { kValue, kTerms };

// Columns of 32-column block b as value = d * (u - offset), or d * u + m, in f32; or the magnitudes of its terms.
template <WeightType kType, Wanted kWanted>
void dequantize_block(const uint8_t* p, int64_t b, float* out) {
  constexpr PanelFormat kFormat = panel_format(kType);
  float d[2], m = 0;
  if constexpr (kType == WeightType::kQ6_K) {
    const float super = to_f32(quant::load_f16(p + 208));
    for (int h = 0; h < 2; ++h) d[h] = super * static_cast<float>(static_cast<int8_t>(p[192 + 2 * b + h]));
  } else if constexpr (kType == WeightType::kQ4_K) {
    uint8_t scale, minimum;
    quant::q4_k_scale(p, b, scale, minimum);
    d[0] = d[1] = to_f32(quant::load_f16(p)) * static_cast<float>(scale);
    m = to_f32(quant::load_f16(p + 2)) * static_cast<float>(minimum);
  } else {
    d[0] = d[1] = to_f32(quant::load_f16(p));
    if constexpr (kFormat.minimum) m = to_f32(quant::load_f16(p + 2));
  }
  for (int64_t g = 0; g < 8; ++g) {
    uint32_t group = quant::low_group<kType>(p, b, g);
    if constexpr (kFormat.bits == 5 || kFormat.bits == 6) group |= quant::high_group<kType>(p, b, g) << 4;
    for (int64_t c = 0; c < 4; ++c) {
      const int integer = static_cast<int>(group >> (8 * c) & 255) - kFormat.offset;
      const float scaled = d[g / 4] * static_cast<float>(integer);
      if (kWanted == Wanted::kTerms) {
        out[4 * g + c] = std::fabs(scaled) + std::fabs(m);
        continue;
      }
      out[4 * g + c] = kType == WeightType::kQ4_K ? scaled - m : kFormat.minimum ? scaled + m : scaled;
    }
  }
}

template <WeightType kType, Wanted kWanted>
void dequantize_all(const uint8_t* p, int64_t count, float* out) {
  constexpr WeightFormat kFormat = format_of(kType);
  constexpr int64_t kBlocks = kFormat.block_elements / kBlock;
  for (int64_t i = 0; i < count; i += kFormat.block_elements, p += kFormat.block_bytes)
    for (int64_t b = 0; b < kBlocks; ++b) dequantize_block<kType, kWanted>(p, b, out + i + b * kBlock);
}

template <Wanted kWanted>
void dequantize_any(WeightType type, const void* blocks, int64_t count, float* out) {
  const WeightFormat& format = format_of(type);
  if (count < 0 || count % format.block_elements)
    throw Error(ErrorKind::kArgument, "dequantize", "count", fmt::format("{}", count),
                fmt::format("must be a multiple of {}'s block of {}", format.name, format.block_elements));
  if (count && (!blocks || !out)) throw Error(ErrorKind::kArgument, "dequantize", "pointer", "null", "must be given");
  const auto* p = static_cast<const uint8_t*>(blocks);
  switch (type) {
    case WeightType::kF32:
      if (count) std::memcpy(out, p, static_cast<size_t>(count) * 4);
      return;
    case WeightType::kF16:
      for (int64_t i = 0; i < count; ++i) out[i] = to_f32(quant::load_f16(p + 2 * i));
      return;
    case WeightType::kBF16:
      for (int64_t i = 0; i < count; ++i) out[i] = to_f32(BF16{quant::load_f16(p + 2 * i).bits});
      return;
    case WeightType::kQ8_0:
      return dequantize_all<WeightType::kQ8_0, kWanted>(p, count, out);
    case WeightType::kQ4_1:
      return dequantize_all<WeightType::kQ4_1, kWanted>(p, count, out);
    case WeightType::kQ5_0:
      return dequantize_all<WeightType::kQ5_0, kWanted>(p, count, out);
    case WeightType::kQ4_K:
      return dequantize_all<WeightType::kQ4_K, kWanted>(p, count, out);
    case WeightType::kQ6_K:
      return dequantize_all<WeightType::kQ6_K, kWanted>(p, count, out);
  }
}

}  // namespace

void dequantize(WeightType type, const void* blocks, int64_t count, float* out) {
  dequantize_any<Wanted::kValue>(type, blocks, count, out);
}

void dequantised_terms(WeightType type, const void* blocks, int64_t count, float* out) {
  dequantize_any<Wanted::kTerms>(type, blocks, count, out);
  if (!is_quantised(type))
    for (int64_t i = 0; i < count; ++i) out[i] = std::fabs(out[i]);
}

}  // namespace attend
