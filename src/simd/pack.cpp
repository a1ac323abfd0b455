#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "attend/simd/product.h"
#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"
#include "simd/panel.h"
#include "simd/quant_block.h"

namespace attend {
namespace {

void store32(uint8_t* p, uint32_t v) {
  std::memcpy(p, &v, 4);
}

// Scales of (super)block `s` of row r, at `p`, into the panel's `scales`.
template <WeightType kType>
void pack_scales(const uint8_t* p, int64_t s, int64_t r, uint8_t* scales) {
  uint8_t* to = scales + s * panel_format(kType).scale_bytes;
  if constexpr (kType == WeightType::kQ6_K) {
    std::memcpy(to + 2 * r, p + 208, 2);
    for (int64_t i = 0; i < 16; ++i) to[32 + i * kPanelRows + r] = p[192 + i];
  } else {
    std::memcpy(to + 2 * r, p, 2);
    if constexpr (panel_format(kType).minimum) std::memcpy(to + 32 + 2 * r, p + 2, 2);
    if constexpr (kType == WeightType::kQ4_K)
      for (int64_t b = 0; b < 8; ++b)
        quant::q4_k_scale(p, b, to[64 + b * kPanelRows + r], to[192 + b * kPanelRows + r]);
  }
}

// The 32 integers of block b of the (super)block at `p`, row r, into the panel's lines of that block.
template <WeightType kType>
void pack_integers(const uint8_t* p, int64_t b, int64_t r, uint8_t* lines) {
  constexpr PanelFormat kFormat = panel_format(kType);
  uint8_t* to = lines + 4 * r;
  if constexpr (kFormat.bits == 8) {
    for (int64_t g = 0; g < 8; ++g) store32(to + g * kLine, quant::low_group<kType>(p, b, g));
    return;
  }
  for (int64_t i = 0; i < 4; ++i)
    store32(to + i * kLine, quant::low_group<kType>(p, b, 2 * i) | quant::low_group<kType>(p, b, 2 * i + 1) << 4);
  if constexpr (kFormat.bits == 5) {
    uint32_t high = 0;
    const uint32_t bits = quant::load32(p + 2);
    for (int c = 0; c < 4; ++c) high |= quant::gather_fourths(bits >> c) << (8 * c);
    store32(to + 4 * kLine, high);
  }
  if constexpr (kFormat.bits == 6) {
    for (int64_t half = 0; half < 2; ++half) {
      uint32_t high = 0;
      for (int f = 0; f < 4; ++f) high |= quant::high_group<kType>(p, b, 4 * half + f) << (2 * f);
      store32(to + (4 + half) * kLine, high);
    }
  }
}

template <WeightType kType>
void pack_panel(const uint8_t* rows, int64_t count, int64_t k, uint8_t* panel) {
  constexpr WeightFormat kFormat = format_of(kType);
  constexpr int64_t kBlocks = kFormat.block_elements / kBlock, kBlockLines = panel_format(kType).lines * kLine;
  const int64_t row_bytes = k / kFormat.block_elements * kFormat.block_bytes;
  uint8_t* scales = panel + panel_integer_bytes(kType, k);
  if (count < kPanelRows) std::memset(panel, 0, static_cast<size_t>(panel_bytes(kType, k)));
  for (int64_t s = 0; s < k / kFormat.block_elements; ++s) {
    for (int64_t r = 0; r < count; ++r) {
      const uint8_t* p = rows + r * row_bytes + s * kFormat.block_bytes;
      pack_scales<kType>(p, s, r, scales);
      for (int64_t b = 0; b < kBlocks; ++b) pack_integers<kType>(p, b, r, panel + (s * kBlocks + b) * kBlockLines);
    }
  }
}

// F16 and BF16: [k][16] from rows that may lie anywhere.
void interleave16(const uint8_t* rows, int64_t count, int64_t k, uint8_t* panel) {
  for (int64_t i = 0; i < k; ++i, panel += kPanelRows * 2) {
    for (int64_t r = 0; r < count; ++r) std::memcpy(panel + 2 * r, rows + (r * k + i) * 2, 2);
    std::memset(panel + 2 * count, 0, static_cast<size_t>(kPanelRows - count) * 2);
  }
}

// Any type as f32, so many columns at a time that 16 rows of them stay in the first cache.
void interleave_f32(WeightType type, const uint8_t* rows, int64_t count, int64_t k, float* panel) {
  const WeightFormat& format = format_of(type);
  const int64_t row_bytes = k / format.block_elements * format.block_bytes;
  constexpr int64_t kChunk = 256;
  float chunk[kPanelRows][kChunk] = {};
  for (int64_t begin = 0; begin < k; begin += kChunk) {
    const int64_t columns = std::min(kChunk, k - begin);
    for (int64_t r = 0; r < count; ++r)
      dequantize(type, rows + r * row_bytes + begin / format.block_elements * format.block_bytes, columns, chunk[r]);
    float* to = panel + begin * kPanelRows;
    for (int64_t i = 0; i < columns; ++i)
      for (int64_t r = 0; r < kPanelRows; ++r) to[i * kPanelRows + r] = chunk[r][i];
  }
}

// One panel of `packed` (the type as packed) from `count` source rows of `type`.
void pack_one(WeightType type, WeightType packed, const uint8_t* rows, int64_t count, int64_t k, uint8_t* panel) {
  if (packed == WeightType::kF32) return interleave_f32(type, rows, count, k, reinterpret_cast<float*>(panel));
  switch (type) {
    case WeightType::kQ8_0:
      return pack_panel<WeightType::kQ8_0>(rows, count, k, panel);
    case WeightType::kQ4_1:
      return pack_panel<WeightType::kQ4_1>(rows, count, k, panel);
    case WeightType::kQ5_0:
      return pack_panel<WeightType::kQ5_0>(rows, count, k, panel);
    case WeightType::kQ4_K:
      return pack_panel<WeightType::kQ4_K>(rows, count, k, panel);
    case WeightType::kQ6_K:
      return pack_panel<WeightType::kQ6_K>(rows, count, k, panel);
    default:
      return interleave16(rows, count, k, panel);
  }
}

[[noreturn]] void refuse(const char* argument, int64_t got, std::string_view rule) {
  throw Error(ErrorKind::kArgument, "pack_weight", argument, fmt::format("{}", got), rule);
}

// Source bytes between two calls of rows_done: large enough to be cheap, small beside a model.
constexpr int64_t kStepBytes = 8 << 20;

}  // namespace

PackedWeight pack_weight(WeightType type, const void* blocks, int64_t n, int64_t k, ComputeMode mode, Context& context,
                         RowsDone* done) {
  const WeightFormat& format = format_of(type);
  if (n < 1) refuse("n", n, "must be at least 1");
  if (k < 1 || k % format.block_elements)
    refuse("k", k, fmt::format("must be a positive multiple of {}'s block of {}", format.name, format.block_elements));
  if (k > int64_t{1} << 30) refuse("k", k, "must be at most 2^30");
  if (!blocks) throw Error(ErrorKind::kArgument, "pack_weight", "blocks", "null", "must be given");

  PackedWeight w;
  w.type = mode == ComputeMode::kF32 ? WeightType::kF32 : type;
  w.n = n;
  w.k = k;
  const int64_t panels = (n - 1) / kPanelRows + 1, panel_size = panel_bytes(w.type, k);
  if (panels > (int64_t{1} << 46) / panel_size) refuse("n", n, "is too large");
  w.data = Buffer(panels * panel_size);

  const int64_t row_bytes = k / format.block_elements * format.block_bytes;
  const int64_t step = std::max<int64_t>(context.threads, kStepBytes / (row_bytes * kPanelRows));
  const auto* from = static_cast<const uint8_t*>(blocks);
  auto* to = reinterpret_cast<uint8_t*>(w.data.data());
  for (int64_t begin = 0; begin < panels; begin += step) {
    const int64_t end = std::min(panels, begin + step);
    parallel_for(context.threads, end - begin, [&](int64_t i, int) {
      const int64_t p = begin + i, first = p * kPanelRows;
      pack_one(type, w.type, from + first * row_bytes, std::min(kPanelRows, n - first), k, to + p * panel_size);
    });
    if (done) done->rows_done(begin * kPanelRows, std::min(n, end * kPanelRows));
  }
  return w;
}

namespace {

template <WeightType kType>
void unpack_quantised(const uint8_t* panel, int64_t k, int64_t r, float* out) {
  constexpr PanelFormat kFormat = panel_format(kType);
  const uint8_t* scales = panel + panel_integer_bytes(kType, k);
  for (int64_t i = 0; i < k; ++i) {
    const int64_t b = i / kBlock, g = i % kBlock / 4, byte = 4 * r + i % 4;
    const uint8_t* lines = panel + b * kFormat.lines * kLine + byte;
    int integer = kFormat.bits == 8 ? lines[g * kLine] : lines[g / 2 * kLine] >> (g % 2 * 4) & 15;
    if (kFormat.bits == 5) integer |= (lines[4 * kLine] >> g & 1) << 4;
    if (kFormat.bits == 6) integer |= (lines[(4 + g / 4) * kLine] >> (g % 4 * 2) & 3) << 4;
    const uint8_t* s = scales + i / kFormat.span * kFormat.scale_bytes;
    float d = to_f32(quant::load_f16(s + 2 * r)), m = 0;
    if (kFormat.minimum) m = to_f32(quant::load_f16(s + 32 + 2 * r));
    if (kType == WeightType::kQ4_K) {
      d *= static_cast<float>(s[64 + b % 8 * kPanelRows + r]);
      m *= -static_cast<float>(s[192 + b % 8 * kPanelRows + r]);
    }
    if (kType == WeightType::kQ6_K) d *= static_cast<float>(static_cast<int8_t>(s[32 + i / 16 % 16 * kPanelRows + r]));
    const float scaled = d * static_cast<float>(integer - kFormat.offset);
    out[i] = kFormat.minimum ? scaled + m : scaled;
  }
}

}  // namespace

void unpack_row(const PackedWeight& w, int64_t row, float* out) {
  if (row < 0 || row >= w.n)
    throw Error(ErrorKind::kArgument, "unpack_row", "row", fmt::format("{}", row),
                fmt::format("must be in 0..{}", w.n - 1));
  if (!out) throw Error(ErrorKind::kArgument, "unpack_row", "out", "null", "must be given");
  const auto* panel = reinterpret_cast<const uint8_t*>(w.data.data()) + row / kPanelRows * panel_bytes(w.type, w.k);
  const int64_t r = row % kPanelRows;
  switch (w.type) {
    case WeightType::kF32:
      for (int64_t i = 0; i < w.k; ++i) std::memcpy(out + i, panel + (i * kPanelRows + r) * 4, 4);
      return;
    case WeightType::kF16:
      for (int64_t i = 0; i < w.k; ++i) out[i] = to_f32(quant::load_f16(panel + (i * kPanelRows + r) * 2));
      return;
    case WeightType::kBF16:
      for (int64_t i = 0; i < w.k; ++i) out[i] = to_f32(BF16{quant::load_f16(panel + (i * kPanelRows + r) * 2).bits});
      return;
    case WeightType::kQ8_0:
      return unpack_quantised<WeightType::kQ8_0>(panel, w.k, r, out);
    case WeightType::kQ4_1:
      return unpack_quantised<WeightType::kQ4_1>(panel, w.k, r, out);
    case WeightType::kQ5_0:
      return unpack_quantised<WeightType::kQ5_0>(panel, w.k, r, out);
    case WeightType::kQ4_K:
      return unpack_quantised<WeightType::kQ4_K>(panel, w.k, r, out);
    case WeightType::kQ6_K:
      return unpack_quantised<WeightType::kQ6_K>(panel, w.k, r, out);
  }
}

}  // namespace attend
