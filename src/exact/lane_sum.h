#pragma once
// Sums whose order depends on no vector width.
#include <cstdint>

namespace attend::exact {

// f(0) + .. + f(n - 1), in 16 lanes by j mod 16. `f` must be inlined.
template <class F>
[[gnu::always_inline]] inline float lane_sum(int64_t n, const F& f) {
  float lane[16] = {};
  const int64_t whole = n / 16 * 16;
  for (int64_t j = 0; j < whole; j += 16) {
#pragma omp simd
    for (int l = 0; l < 16; ++l) lane[l] += f(j + l);
  }
  for (int64_t j = whole; j < n; ++j) lane[j - whole] += f(j);
  for (int half = 8; half; half /= 2)
    for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
  return lane[0];
}

[[gnu::always_inline]] inline float lane_sum(const float* x, int64_t n) {
  return lane_sum(
      n, [=](int64_t j) __attribute__((always_inline)) { return x[j]; });
}

[[gnu::always_inline]] inline float lane_dot(const float* x, const float* y, int64_t n) {
  return lane_sum(
      n, [=](int64_t j) __attribute__((always_inline)) { return x[j] * y[j]; });
}

}  // namespace attend::exact
