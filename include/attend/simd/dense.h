#pragma once
// Small dense products for mechanisms that are algorithms of their own: rows against panels of 64 keys, rows of weights
// against values. Every sum has one order (dots in ascending d, values in ascending key), however many rows there are,
// so that a row's result depends on nothing but that row. No errors; memory is the caller's.
#include <cstdint>

#include "attend/tensor/dtype.h"
#include "attend/tensor/isa.h"
#include "attend/tensor/key_view.h"

namespace attend {

inline constexpr int kPanelKeys = 64;  // columns of a panel, and of a step of `dots`

struct DenseKernels {
  // panel[c * 64 + j] = x[j * x_stride + c] for j < keys, 0 for the rest; x of f32, f16 or bf16, or
  // quantised rows of d elements.
  void (*pack)(DType type, const void* x, int64_t x_stride, int64_t keys, int64_t d, float* panel);
  // out[j * out_stride + c] = x[j * x_stride + c] as f32. Quantised rows are read whole: of `width` elements.
  void (*widen)(DType type, const void* x, int64_t x_stride, int64_t rows, int64_t width, float* out,
                int64_t out_stride);
  // The same for rows of a key view, whatever their type.
  void (*pack_run)(const RowRun& x, int64_t keys, int64_t d, float* panel);
  void (*widen_run)(const RowRun& x, int64_t rows, int64_t width, float* out, int64_t out_stride);
  // s[r * s_stride + j] = sum over ascending c of x[r * x_stride + c] * panel[c * 64 + j], all 64 columns.
  void (*dots)(const float* x, int64_t x_stride, int64_t rows, int64_t d, const float* panel, float* s,
               int64_t s_stride);
  // out[r * out_stride + c] += sum over ascending j of w[r * w_stride + j] * v[j * v_stride + c]. A weight of 0 takes
  // part in nothing, not even as 0 x NaN.
  void (*add_rows)(const float* w, int64_t w_stride, int64_t rows, int64_t keys, const float* v, int64_t v_stride,
                   int64_t width, float* out, int64_t out_stride);
  // s[j] = exp(s[j] - m), m the largest of n scores; gives the sum, in 16 lanes by j mod 16, and m. Where all are -inf:
  // s = 0, sum 0, m -inf. A NaN makes sum and weights NaN.
  float (*exponentials)(float* s, int64_t n, float* largest);
};

// Throws Error(kUnsupported) if this build has no kernels for it.
const DenseKernels& dense_kernels(Isa isa);

}  // namespace attend
