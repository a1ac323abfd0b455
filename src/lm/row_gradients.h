#pragma once
// Backward passes of what a model does to rows (attend/simd/row_ops.h): g are gradients of a loss. Every function works
// on one row, sums in ascending order. No errors.
#include <cstdint>

namespace attend {

// Of y = x weight / sqrt(mean(x^2) + epsilon): adds to g_x. g_x may be g_y, which is then replaced.
void rms_norm_backward(const float* x, const float* weight, int64_t n, double epsilon, const float* g_y, float* g_x,
                       bool replace);

// Of z = silu(x) y, or gelu(x) y: g comes in as that of z and goes out as that of x; adds to g_y.
void silu_multiply_backward(const float* x, const float* y, int64_t n, float* g, float* g_y);
void gelu_multiply_backward(const float* x, const float* y, int64_t n, float* g, float* g_y);

}  // namespace attend
