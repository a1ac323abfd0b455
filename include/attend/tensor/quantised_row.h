#pragma once
// Rows of keys and values as small integers, a scale for each block of 32 elements: the numbers of ggml's q8_0 and
// q4_0.
//
//   q8_0   d = max |x| / 127      q = round(x / d), halves away from zero, in -127..127     x' = q d
//   q4_0   d = m / -8             q = min(15, floor(x / d + 8.5)), in 0..15                 x' = (q - 8) d
//
// with m the first of the block's elements of largest magnitude. Arithmetic is f32, x / d is x * (1 / d), and d is
// stored as f16, after it served to find q. x' is exact in f32.
//
// Source   quantize_row_q8_0_ref and quantize_row_q4_0_ref of ggml (ggml-quants.c). Differs: where the stored scale is
//          0, so are the values that are stored (ggml keeps integers that mean nothing); a block with an element that
//          is not finite, or with one beyond what an f16 scale reaches (8.3e6 and 5.2e5), gets the scale NaN, so that
//          it shows in what reads it.
//
// Layout   of n elements, n a multiple of 32: all integers, then n / 32 scales (ggml alternates the two). q8_0: n
// bytes.
//          q4_0: n / 2 bytes, of the 16 of a block the low halves are its elements 0 to 15, the high ones 16 to 31.
//          Whole vectors of integers then lie side by side. Nothing is aligned.
#include "attend/tensor/dtype.h"

namespace attend {

// n a multiple of 32, type q8_0 or q4_0; `row` has row_bytes(type, n). Cost O(n), no errors.
void quantise_row(const float* x, int64_t n, DType type, void* row);
void dequantise_row(const void* row, int64_t n, DType type, float* x);

// Element i of a row of n.
float quantised_element(const void* row, int64_t n, DType type, int64_t i);

}  // namespace attend
