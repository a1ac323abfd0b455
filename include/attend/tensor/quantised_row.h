#pragma once
// Rows of keys and values as small integers, with scales for blocks of 32 elements, or for channels.
//
//   q8_0   d = max |x| / 127      q = round(x / d), halves away from zero, in -127..127     x' = q d
//   q4_0   d = m / -8             q = min(15, floor(x / d + 8.5)), in 0..15                 x' = (q - 8) d
//   q4_1   z = min x, s = (max x - z) / 15     q = round((x - z) / s), halves up, in 0..15  x' = q s + z
//   q2_1   the same with 3 for 15
//   q4_c, q2_c   the same, with s and z of a channel (element) over several rows instead of a block of one row
//
// with m the first of the block's elements of largest magnitude. Arithmetic is f32. Of q8_0 and q4_0 x / d is
// x * (1 / d), and d is stored as f16, after it served to find q; x' is exact in f32. Of the others s and z are f16
// when they serve to find q, which is clamped to its range; x' is rounded once.
//
// Source   q8_0, q4_0: quantize_row_q8_0_ref and quantize_row_q4_0_ref of ggml (ggml-quants.c). Differs: where the
//          stored scale is 0, so are the values that are stored (ggml keeps integers that mean nothing); a block with
//          an element that is not finite, or with one beyond what an f16 scale reaches (8.3e6 and 5.2e5), gets the
//          scale NaN, so that it shows in what reads it.
//          The others: KIVI (Liu et al. 2024, arXiv:2402.02750), section 3.1, Q(X) = round((X - z_X) / s_X): its values
//          per token are q4_1 and q2_1 (group 32), its keys per channel q4_c and q2_c. Differs: halves round up; what
//          has one value has s = 0; what is not finite, or has z or s beyond f16, gets NaN for both.
//
// Layout   of n elements, n a multiple of 32: all integers, then n / 32 scales (ggml alternates the two), then, of _1,
//          n / 32 offsets z. q8_0: n bytes. Four bits: n / 2 bytes, of the 16 of a block the low halves are its
//          elements 0 to 15, the high ones 16 to 31. Two bits: n / 4 bytes, element i in bits 2 (i % 4) of byte i / 4.
//          Whole vectors of integers then lie side by side. Nothing is aligned.
#include "attend/tensor/key_view.h"

namespace attend {

// n a multiple of 32, type q8_0, q4_0, q4_1 or q2_1; `row` has row_bytes(type, n). Cost O(n), no errors.
void quantise_row(const float* x, int64_t n, DType type, void* row);
void dequantise_row(const void* row, int64_t n, DType type, float* x);

// Rows x [rows, n] by channel, type q4_c or q2_c: s [n], z [n], and rows of row_bytes(type, n) each. Cost O(rows n), no
// errors.
void quantise_channels(const float* x, int64_t rows, int64_t n, DType type, F16* scale, F16* offset, void* coded);

// Element i of a row of n.
float quantised_element(const void* row, int64_t n, DType type, int64_t i);

// Element i of row r, whatever the type: a float of 16 or 32 bits, or quantised.
float element_of(const RowRun& rows, int64_t r, int64_t n, int64_t i);

}  // namespace attend
