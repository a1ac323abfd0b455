#include "row_gradients.h"

#include <cmath>

namespace attend {

void rms_norm_backward(const float* x, const float* weight, int64_t n, double epsilon, const float* g_y, float* g_x,
                       bool replace) {
  double squares = 0, dot = 0;
#pragma omp simd reduction(+ : squares, dot)
  for (int64_t i = 0; i < n; ++i) {
    squares += static_cast<double>(x[i]) * x[i];
    dot += static_cast<double>(g_y[i]) * weight[i] * x[i];
  }
  const double factor = 1 / std::sqrt(squares / static_cast<double>(n) + epsilon);
  const float own = static_cast<float>(factor);
  const float along = static_cast<float>(-factor * factor * factor * dot / static_cast<double>(n));
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float g = own * weight[i] * g_y[i] + along * x[i];
    g_x[i] = replace ? g : g_x[i] + g;
  }
}

void silu_multiply_backward(const float* x, const float* y, int64_t n, float* g, float* g_y) {
  for (int64_t i = 0; i < n; ++i) {
    const float s = 1 / (1 + std::exp(-x[i]));
    g_y[i] += g[i] * x[i] * s;
    g[i] *= y[i] * s * (1 + x[i] * (1 - s));
  }
}

void gelu_multiply_backward(const float* x, const float* y, int64_t n, float* g, float* g_y) {
  constexpr float kFactor = 0.7978845608028654f;  // sqrt(2 / pi)
  constexpr float kCubic = 0.044715f;
  for (int64_t i = 0; i < n; ++i) {
    const float square = x[i] * x[i], t = std::tanh(kFactor * (x[i] + kCubic * x[i] * square));
    g_y[i] += g[i] * x[i] / 2 * (1 + t);
    g[i] *= y[i] * ((1 + t) / 2 + x[i] / 2 * (1 - t * t) * kFactor * (1 + 3 * kCubic * square));
  }
}

}  // namespace attend
