#pragma once
// The kernels of one instruction set, and the layout of activations that they read.
#include <cstdint>

#include "attend/simd/product.h"
#include "simd/panel.h"

namespace attend {

// Activation rows are laid out in tiles of `width` rows (the last tile has what is left), so that a kernel reads each
// tile as one stream. An int8 tile is [k / 32 blocks] of { int8 q[8][width][4]; BlockScale s[width] }, an f32 tile
// [k][width]. Tiles follow each other without a gap.
struct BlockScale {
  float scale;              // x = scale * q
  int32_t negated_sum;      // -sum of q over the block
  int32_t negated_half[2];  // and over its halves
};
static_assert(sizeof(BlockScale) == 16);

constexpr int64_t int8_row_bytes(int64_t k) {
  return k + k / kBlock * static_cast<int64_t>(sizeof(BlockScale));
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
  int int8_width, f32_width;  // rows of a full tile

  // Quantises one row into place `row` of an int8 tile of `width` rows. A block with a value that is not finite gets
  // scale NaN.
  void (*quantise)(const float* x, int64_t k, std::byte* tile, int64_t width, int64_t row);

  // Outputs of panels [panel_begin, panel_end) for rows [row_begin, row_end) of x; row_begin is a multiple of the
  // width.
  void (*int8)(const ProductJob& job, int64_t panel_begin, int64_t panel_end, int64_t row_begin, int64_t row_end);
  void (*f32)(const ProductJob& job, int64_t panel_begin, int64_t panel_end, int64_t row_begin, int64_t row_end);
};

namespace avx2 {
extern const ProductKernels kProductKernels;
}
namespace avx512 {
extern const ProductKernels kProductKernels;
}
namespace avx512vnni {
extern const ProductKernels kProductKernels;
}

}  // namespace attend
