#pragma once
// The kernels of one instruction set, and the layout of activations that they read.
#include <cstdint>

#include "attend/simd/product.h"
#include "simd/panel.h"

namespace attend {

// How activations are read. kInt16 is for weights of 8 bits, whose products int8 activations would limit.
enum class Activation { kInt8, kInt16, kF32 };
inline constexpr int kActivationCount = 3;

constexpr Activation activation_of(WeightType type) {
  if (!is_quantised(type)) return Activation::kF32;
  return panel_format(type).bits == 8 ? Activation::kInt16 : Activation::kInt8;
}

// Activation rows are laid out in tiles of `width` rows (the last tile has what is left), so that a kernel reads each
// tile as one stream. Tiles follow each other without a gap. A tile is, for each block of 32 columns,
//   kInt8   int8 q[8][width][4], BlockScale s[width]
//   kInt16  two planes like q above, BlockScale s[width]; the planes hold what the instruction set multiplies: high
//           bytes (rounded) and low bytes, or even and odd columns as int16
// and for each column
//   kF32    float x[width]
// On AMX tiles a block of 32 columns is int8 q[width][32], kInt16 both planes like it, and each member of BlockScale for
// all rows.
struct BlockScale {
  float scale;              // x = scale * q
  int32_t negated_sum;      // -sum of q over the block; kInt16: of the high bytes where planes are bytes
  int32_t negated_half[2];  // kInt8: and over its halves; kInt16: [0] is that of the low bytes
};
static_assert(sizeof(BlockScale) == 16);

constexpr int64_t row_bytes(Activation activation, int64_t k) {
  if (activation == Activation::kF32) return k * 4;
  const int64_t planes = activation == Activation::kInt16 ? 2 : 1;
  return k / kBlock * (planes * kBlock + static_cast<int64_t>(sizeof(BlockScale)));
}

struct ProductJob {
  WeightType type;
  const std::byte* panels;
  int64_t n, k;
  const std::byte* x;  // the first tile
  int64_t t;           // rows of x
  float* y;
  int64_t y_stride;
};

struct ProductKernels {
  int integer_width, f32_width;  // rows of a full tile

  // Quantises one row into place `row` of a tile of `width` rows. A block with a value that is not finite gets scale
  // NaN.
  void (*quantise_int8)(const float* x, int64_t k, std::byte* tile, int64_t width, int64_t row);
  void (*quantise_int16)(const float* x, int64_t k, std::byte* tile, int64_t width, int64_t row);

  // Outputs of panels [panel_begin, panel_end) for rows [row_begin, row_end) of x; row_begin is a multiple of the
  // width.
  void (*integer)(const ProductJob& job, int64_t panel_begin, int64_t panel_end, int64_t row_begin, int64_t row_end);
  void (*f32)(const ProductJob& job, int64_t panel_begin, int64_t panel_end, int64_t row_begin, int64_t row_end);
};

// The instructions of integer products alone, on registers: `rounds` times the multiply-adds given.
struct ProductLimits {
  float (*int8)(int64_t rounds) noexcept;
  float (*int16)(int64_t rounds) noexcept;
  int64_t multiply_adds;  // a round
};

namespace avx2 {
extern const ProductKernels kProductKernels;
extern const ProductLimits kProductLimits;
}  // namespace avx2
namespace avx512 {
extern const ProductKernels kProductKernels;
extern const ProductLimits kProductLimits;
}  // namespace avx512
namespace avx512vnni {
extern const ProductKernels kProductKernels;
extern const ProductLimits kProductLimits;
}  // namespace avx512vnni
namespace amx {
const ProductKernels& product_kernels();
}  // namespace amx
namespace neon {
extern const ProductKernels kProductKernels;
extern const ProductLimits kProductLimits;
}  // namespace neon
namespace neondot {
extern const ProductKernels kProductKernels;
extern const ProductLimits kProductLimits;
}  // namespace neondot

// For products with so many rows. Throws Error(kUnsupported) if this build has none for the instruction set.
const ProductKernels& product_kernels(Isa isa, int64_t rows);

}  // namespace attend
