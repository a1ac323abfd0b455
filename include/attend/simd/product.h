#pragma once
// Products of activations with weights: y[t, n] = sum_k x[t, k] w[n, k].
//
// Weights are repacked once into panels of 16 output rows and stay in their type. Quantised weights are multiplied as
// integers: each activation row is quantised in blocks of 32 with an f32 scale, to 8 bits (to 16 for weights of 8 bits,
// where it costs little), integer dot products are exact, blocks are scaled and added in ascending order. The result of
// a row therefore depends neither on the other rows nor on threads. F32, F16 and BF16 weights, and every type when
// packed for ComputeMode::kF32, use f32 products accumulated in ascending k.
#include <cstdint>
#include <span>

#include "attend/tensor/buffer.h"
#include "attend/tensor/context.h"
#include "attend/tensor/weight_type.h"

namespace attend {

enum class ComputeMode : uint8_t { kDefault, kF32 };

// A repacked weight matrix of n output rows and k columns.
struct PackedWeight {
  WeightType type = WeightType::kF32;  // as packed: kF32 for any type under ComputeMode::kF32
  int64_t n = 0, k = 0;
  Buffer data;  // panels of 16 rows: integers, then their scales; or floats
  int64_t bytes() const { return data.bytes(); }
};

// Told once source rows [first, last) are no longer needed, in ascending order, so that mapped pages can be released.
struct RowsDone {
  virtual ~RowsDone() = default;
  virtual void rows_done(int64_t first, int64_t last) = 0;
};

// Repacks n rows of k columns, GGUF blocks at any address. A quantised or 16-bit weight keeps its size but for the rows
// that fill up the last panel (Q4_K grows by 1/36). Reads and writes each byte once; threads share the work.
// Throws Error(kArgument) for n < 1, a null pointer, or k that is no multiple of the block, Error(kMemory).
PackedWeight pack_weight(WeightType type, const void* blocks, int64_t n, int64_t k, ComputeMode mode, Context& context,
                         RowsDone* done = nullptr);

// Activations are quantised to integers of this magnitude at most, for products with weights packed in `type`; 0 if
// they stay f32.
constexpr int64_t activation_levels(WeightType type) {
  switch (type) {
    case WeightType::kF32:
    case WeightType::kF16:
    case WeightType::kBF16:
      return 0;
    case WeightType::kQ8_0:
      return 127 * 256;
    default:
      return 127;
  }
}

// y [t, n] = x [t, k] * w^T, f32, row strides in elements, t >= 0. Cost t * n * k multiply-adds; for few rows, reading
// the weight once. What is not finite in a row of x makes that row of y NaN or infinite, and no other. x is read before
// y is written. Throws Error(kArgument) before writing anything, Error(kUnsupported) for the instruction set.
// |error| <= bound::quantised_product where activations are quantised, else bound::product (see attend/tensor/bound.h).
void product(const PackedWeight& w, const float* x, int64_t x_stride, float* y, int64_t y_stride, int64_t t,
             Context& context);

// Several weights over the same x, as one parallel step: y[i] [t, w[i]->n] with row stride y_stride[i]. Each result is
// that of product(). All weights have the same k.
void products(std::span<const PackedWeight* const> w, const float* x, int64_t x_stride, std::span<float* const> y,
              std::span<const int64_t> y_stride, int64_t t, Context& context);

// Row `row` of the matrix as f32: the dequantised values, exactly those of dequantize() on the source blocks.
void unpack_row(const PackedWeight& w, int64_t row, float* out);

// `count` elements of GGUF blocks (count a multiple of the block) as f32, in f32 arithmetic as the format defines.
void dequantize(WeightType type, const void* blocks, int64_t count, float* out);

// The magnitudes of what is added up to make each element, |d u| + |m|: what bound::quantised_product takes.
void dequantised_terms(WeightType type, const void* blocks, int64_t count, float* out);

}  // namespace attend
