#pragma once
// Bounds on the error of what attend computes, from lengths, epsilons and norms: the one place that tests, `check` and
// benchmarks take them from.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

namespace attend::bound {

inline constexpr double kEpsilon = 0x1p-24;  // relative error of one rounding to f32

// Of n roundings in a row: n eps / (1 - n eps) (Higham, Accuracy and Stability of Numerical Algorithms, 3.1).
inline double gamma(int64_t n) {
  return static_cast<double>(n) * kEpsilon / (1 - static_cast<double>(n) * kEpsilon);
}

// |computed - exact| of an f32 sum of k products by fma, where `magnitude` is the exact sum of |x| |w|; what underflows
// adds at most half of the smallest number each time.
inline double product(int64_t k, double magnitude) {
  return gamma(k) * magnitude + static_cast<double>(k) * std::numeric_limits<float>::denorm_min();
}

// Of a product in int8 with activations quantised in blocks of 32, x = scale * q with scale = max |x| / 127:
//   rounding x to q moves each element by at most scale / 2, times (1 + 3 eps) for the rounding of scale and 127 / max;
//   blocks with max |x| < 2^-100 count as zero;
//   integer sums are exact; each half block adds at most 4 roundings and 2 to the running sum.
// `w` are the dequantised weights, `terms` the magnitude of what is added up to make each of them, |d u| + |m| (|w| for
// types without a minimum). Sizes are equal, a multiple of 32.
inline double quantised_product(std::span<const float> x, std::span<const float> w, std::span<const float> terms) {
  double rounding = 0, magnitude = 0;
  for (size_t begin = 0; begin < x.size(); begin += 32) {
    double largest = 0, weights = 0, sum = 0;
    for (size_t i = begin; i < begin + 32; ++i) largest = std::max(largest, std::fabs(static_cast<double>(x[i])));
    for (size_t i = begin; i < begin + 32; ++i) {
      weights += std::fabs(static_cast<double>(w[i]));
      sum += std::fabs(static_cast<double>(terms[i])) * (std::fabs(static_cast<double>(x[i])) + largest / 127);
    }
    rounding += weights * (largest < 0x1p-100 ? largest : largest / 254 * (1 + 254 * 4 * kEpsilon));
    magnitude += sum;
  }
  const int64_t k = static_cast<int64_t>(x.size());
  // The dequantised weight itself is rounded twice, and the product does not use it.
  return rounding + product(k / 16 * 2 + 8, magnitude);
}

}  // namespace attend::bound
