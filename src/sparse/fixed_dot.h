#pragma once
// A product of two vectors that is the same on every instruction set.
#include <cstdint>

namespace attend {

// 16 sums by channel mod 16, added in halves.
[[gnu::always_inline]] inline float fixed_dot(const float* x, const float* y, int64_t n) {
  constexpr int64_t kLanes = 16;
  float sum[kLanes] = {};
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) {
#pragma omp simd
    for (int64_t i = 0; i < kLanes; ++i) sum[i] += x[c + i] * y[c + i];
  }
  for (int64_t i = 0; c < n; ++c, ++i) sum[i] += x[c] * y[c];
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) sum[i] += sum[i + half];
  return sum[0];
}

}  // namespace attend
