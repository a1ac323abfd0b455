// Products of quantised weights with many rows on AMX tiles: the integers of a block of 32 are those of every other
// instruction set, what is made of them too, so bits agree. Rows alone, and products in f32, are AVX-512's.
#include "simd/product_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>

#include "simd/target.h"
#include "simd/tiles.h"

#define ATTEND_ROWS_APART 1

#if defined(__clang__)
#pragma clang attribute push(                                                                                  \
    __attribute__((target("avx512f,avx512dq,avx512cd,avx512bw,avx512vl,avx512vnni,fma,f16c,bmi,bmi2,lzcnt"))), \
    apply_to = function)
#else
#pragma GCC push_options
// GCC 12's own headers start unused operands as `__m512 y = y`.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512dq,avx512cd,avx512bw,avx512vl,avx512vnni,fma,f16c,bmi,bmi2,lzcnt")
#endif

namespace attend::amx {
namespace {

#include "simd/vector_avx512.inc"

constexpr bool kBytePlanes = true;  // of int16 activations

#include "simd/product_panel.inc"

#include "simd/product_quantise.inc"

// Blocks whose sums wait in the first cache until 16 rows of outputs pass with all of them.
constexpr int64_t kChunk = 4;
constexpr int64_t kSums = kTileRows * kPanelRows;  // of a tile

// A block of integers has two parts where rows come in two bytes (planes of the activations) or a block has two scales
// (halves of 16 columns); tiles 0 and 1 then hold the first part with two panels, 2 and 3 the second. Else tiles 2 and
// 3 hold 16 more rows.
template <WeightType kType>
struct Shape {
  static constexpr PanelFormat kFormat = panel_format(kType);
  static constexpr bool kPlanes = activation_of(kType) == Activation::kInt16, kHalves = kFormat.group == 16;
  static constexpr bool kParts = kPlanes || kHalves, kWide = kFormat.bits < 8;
  static constexpr int64_t kDepth = kHalves ? kBlock / 2 : kBlock;  // columns of a product
  static constexpr int64_t kRows = kParts ? kTileRows : 2 * kTileRows;
  static constexpr int64_t kXBytes = row_bytes(activation_of(kType), kBlock);
  static constexpr int64_t kScaleAt = kXBytes - static_cast<int64_t>(sizeof(BlockScale));
};

// What 16 rows bring to a block's outputs: their scales, and what their sums start from.
struct RowTerms {
  alignas(64) float scale[kTileRows];
  alignas(64) int32_t start[2][kTileRows];
  alignas(64) float negated_sum[kTileRows];
};

template <WeightType kType>
ATTEND_INLINE void read_terms(const std::byte* block, int64_t rows, RowTerms& to) {
  using S = Shape<kType>;
  const auto* at = reinterpret_cast<const float*>(block + S::kScaleAt * rows);
  const auto mask = static_cast<__mmask16>((1u << rows) - 1);
  _mm512_store_ps(to.scale, _mm512_maskz_loadu_ps(mask, at));
  const Int sum = _mm512_maskz_loadu_epi32(mask, at + rows);
  if constexpr (S::kPlanes) {
    const Int low = _mm512_maskz_loadu_epi32(mask, at + 2 * rows);
    constexpr int kShift = log2_of(S::kFormat.offset);
    _mm512_store_si512(to.start[0], add32(shift_left32<kShift + 8>(sum), shift_left32<kShift>(low)));
  } else if constexpr (S::kHalves) {
    constexpr int kShift = log2_of(S::kFormat.offset);
    for (int64_t half = 0; half < 2; ++half)
      _mm512_store_si512(to.start[half], shift_left32<kShift>(_mm512_maskz_loadu_epi32(mask, at + (2 + half) * rows)));
  } else if constexpr (S::kFormat.offset != 0) {
    _mm512_store_si512(to.start[0], shift_left32<log2_of(S::kFormat.offset)>(sum));
  }
  if constexpr (S::kFormat.minimum) _mm512_store_ps(to.negated_sum, to_float(sum));
}

// Sums of one block: of the rows at `a` and, if there are any, at `second`, with the lines of two panels.
template <WeightType kType>
ATTEND_INLINE void multiply_block(const std::byte* a, int64_t rows, const std::byte* second, const uint8_t* even,
                                  const uint8_t* odd, int32_t* sums) {
  using S = Shape<kType>;
  if constexpr (S::kParts) second = a + (S::kHalves ? S::kDepth : kBlock * rows);
  Tiles::zero<0>();
  Tiles::zero<1>();
  Tiles::load<4>(a, kBlock);
  Tiles::load<6>(even, kLine);
  Tiles::load<7>(odd, kLine);
  Tiles::multiply_s8u8<0, 4, 6>();
  Tiles::multiply_s8u8<1, 4, 7>();
  if (second) {
    Tiles::zero<2>();
    Tiles::zero<3>();
    Tiles::load<5>(second, kBlock);
    if constexpr (S::kHalves) {
      constexpr int64_t kHalf = S::kDepth / 4 * kLine;
      Tiles::load<6>(even + kHalf, kLine);
      Tiles::load<7>(odd + kHalf, kLine);
    }
    Tiles::multiply_s8u8<2, 5, 6>();
    Tiles::multiply_s8u8<3, 5, 7>();
    Tiles::store<2>(sums + 2 * kSums, kLine);
    Tiles::store<3>(sums + 3 * kSums, kLine);
  }
  Tiles::store<0>(sums, kLine);
  Tiles::store<1>(sums + kSums, kLine);
}

// Outputs of one panel.
struct Outputs {
  float* y;
  int64_t stride;
  int lanes;
  bool fresh;  // starts from 0, not from y
};

// Adds blocks to kM rows of outputs, from the sums of a tile (and those of its second part) and the scales of a panel.
template <WeightType kType, int kM>
ATTEND_INLINE void add_blocks(const int32_t* sums, const RowTerms* terms, int64_t row, const uint8_t* scales,
                              int64_t first_block, int64_t blocks, const Outputs& out) {
  using S = Shape<kType>;
  Float acc[kM];
  float* y = out.y + row * out.stride;
  ATTEND_UNROLL for (int m = 0; m < kM; ++m) acc[m] = out.fresh ? zero() : load_first(y + m * out.stride, out.lanes);
  for (int64_t b = 0; b < blocks; ++b) {
    Float d, second;
    load_scales<kType, S::kWide>(scales, first_block + b, 0, d, second);
    const RowTerms& t = terms[b];
    const int32_t* c = sums + b * 4 * kSums + row * kPanelRows;
    ATTEND_UNROLL for (int m = 0; m < kM; ++m) {
      const Float scale = broadcast(t.scale[row + m]);
      Int sum = _mm512_load_si512(c + m * kPanelRows);
      if constexpr (S::kPlanes) sum = add32(shift_left32<8>(sum), _mm512_load_si512(c + 2 * kSums + m * kPanelRows));
      if constexpr (S::kFormat.offset != 0) sum = add32(sum, broadcast(t.start[0][row + m]));
      Float r = multiply(d, to_float(sum));
      if constexpr (S::kFormat.minimum) r = negated_fma(second, broadcast(t.negated_sum[row + m]), r);
      acc[m] = fma(scale, r, acc[m]);
      if constexpr (S::kHalves) {
        const Int rest = _mm512_load_si512(c + 2 * kSums + m * kPanelRows);
        r = multiply(second, to_float(add32(rest, broadcast(t.start[1][row + m]))));
        acc[m] = fma(scale, r, acc[m]);
      }
    }
  }
  ATTEND_UNROLL for (int m = 0; m < kM; ++m) store_first(y + m * out.stride, acc[m], out.lanes);
}

// Two panels from one block on, widened where they are packed.
struct Panels {
  const uint8_t *lines[2], *scales[2];
  int lanes[2];  // outputs that exist; the second panel may be the first again, with none
  int64_t begin, end;
};

// Rows [row, row + rows) with both panels, rows at most Shape::kRows and tiles configured for them.
template <WeightType kType>
void tile_rows(const ProductJob& job, const Panels& panels, int64_t row, int64_t rows, float* y) {
  using S = Shape<kType>;
  alignas(64) int32_t sums[kChunk * 4 * kSums];
  RowTerms terms[2][kChunk];
  const int64_t count[2] = {std::min<int64_t>(rows, kTileRows), std::max<int64_t>(rows - kTileRows, 0)};
  const std::byte* x[2];
  for (int64_t i = 0; i < 2; ++i)
    x[i] =
        job.x + (row + i * kTileRows) * row_bytes(activation_of(kType), job.k) + panels.begin * count[i] * S::kXBytes;
  const int64_t all = panels.end - panels.begin;
  for (int64_t first = 0; first < all; first += kChunk) {
    const int64_t blocks = std::min(kChunk, all - first);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t line = (first + b) * kBlock / 4 * kLine;
      multiply_block<kType>(x[0], count[0], count[1] ? x[1] : nullptr, panels.lines[0] + line, panels.lines[1] + line,
                            sums + b * 4 * kSums);
      for (int64_t i = 0; i < 2; ++i) {
        if (count[i]) read_terms<kType>(x[i], count[i], terms[i][b]);
        x[i] += count[i] * S::kXBytes;
      }
    }
    for (int64_t i = 0; i < 2; ++i)
      for (int64_t p = 0; p < 2; ++p) {
        if (!panels.lanes[p]) continue;
        const int32_t* of = sums + (2 * i + p) * kSums;
        const Outputs out{y + i * kTileRows * job.y_stride + p * kPanelRows, job.y_stride, panels.lanes[p],
                          panels.begin + first == 0};
        if (count[i] == kTileRows) {
          add_blocks<kType, 16>(of, terms[i], 0, panels.scales[p], first, blocks, out);
        } else {
          for (int64_t m = 0; m < count[i]; ++m)
            add_blocks<kType, 1>(of, terms[i], m, panels.scales[p], first, blocks, out);
        }
      }
  }
}

// Panels `panel` and the next.
template <WeightType kType>
void tile_strip(const ProductJob& job, int64_t panel, int64_t row_begin, int64_t row_end) {
  using S = Shape<kType>;
  constexpr PanelFormat kFormat = S::kFormat;
  alignas(64) uint8_t integers[S::kWide ? 2 * kWideBlocks * kBlock * kPanelRows : 1];
  alignas(64) uint8_t scales[S::kWide ? 2 * kWideBlocks * kWideScaleBytes : 1];
  const int64_t blocks = job.k / kBlock, step = blocks_a_step(blocks), last = (job.n - 1) / kPanelRows;
  for (int64_t begin = 0; begin < blocks; begin += step) {
    Panels panels;
    panels.begin = begin;
    panels.end = std::min(blocks, begin + step);
    for (int64_t p = 0; p < 2; ++p) {
      const uint8_t* from =
          reinterpret_cast<const uint8_t*>(job.panels) + std::min(panel + p, last) * panel_bytes(kType, job.k);
      panels.lanes[p] = static_cast<int>(std::clamp<int64_t>(job.n - (panel + p) * kPanelRows, 0, kPanelRows));
      if constexpr (S::kWide) {
        uint8_t* to = integers + p * kWideBlocks * kBlock * kPanelRows;
        uint8_t* to_scales = scales + p * kWideBlocks * kWideScaleBytes;
        widen<kType>(from, job.k, begin, panels.end, to, to_scales);
        panels.lines[p] = to;
        panels.scales[p] = to_scales;
      } else {
        panels.lines[p] = from + begin * kFormat.lines * kLine;
        panels.scales[p] =
            from + panel_integer_bytes(kType, job.k) + begin * kBlock / kFormat.span * kFormat.scale_bytes;
      }
    }
    float* y = job.y + panel * kPanelRows;
    const int64_t whole = row_begin + (row_end - row_begin) / S::kRows * S::kRows, rest = row_end - whole;
    if (whole > row_begin) {
      const Tiles tiles(kTileRows, kTileRows, S::kDepth);
      for (int64_t row = row_begin; row < whole; row += S::kRows)
        tile_rows<kType>(job, panels, row, S::kRows, y + row * job.y_stride);
    }
    if (rest) {
      const int first = static_cast<int>(std::min<int64_t>(rest, kTileRows));
      const Tiles tiles(first, rest > kTileRows ? static_cast<int>(rest) - kTileRows : first, S::kDepth);
      tile_rows<kType>(job, panels, whole, rest, y + whole * job.y_stride);
    }
  }
}

template <WeightType kType>
void tile_strips(const ProductJob& job, int64_t panel_begin, int64_t panel_end, int64_t row_begin, int64_t row_end) {
  for (int64_t panel = panel_begin; panel < panel_end; panel += 2) tile_strip<kType>(job, panel, row_begin, row_end);
}

void tile_panels(const ProductJob& job, int64_t panel_begin, int64_t panel_end, int64_t row_begin, int64_t row_end) {
  switch (job.type) {
    case WeightType::kQ8_0:
      return tile_strips<WeightType::kQ8_0>(job, panel_begin, panel_end, row_begin, row_end);
    case WeightType::kQ4_1:
      return tile_strips<WeightType::kQ4_1>(job, panel_begin, panel_end, row_begin, row_end);
    case WeightType::kQ5_0:
      return tile_strips<WeightType::kQ5_0>(job, panel_begin, panel_end, row_begin, row_end);
    case WeightType::kQ4_K:
      return tile_strips<WeightType::kQ4_K>(job, panel_begin, panel_end, row_begin, row_end);
    case WeightType::kQ6_K:
      return tile_strips<WeightType::kQ6_K>(job, panel_begin, panel_end, row_begin, row_end);
    default:
      return;
  }
}

}  // namespace

const ProductKernels& product_kernels() {
  static const ProductKernels kernels = [] {
    ProductKernels k = avx512vnni::kProductKernels;
    k.integer_width = kTileRows;
    k.quantise_int8 = quantise_int8;
    k.quantise_int16 = quantise_int16;
    k.integer = tile_panels;
    return k;
  }();
  return kernels;
}

}  // namespace attend::amx

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
