#pragma once
// ln and powers of one float, beside attend/simd/hook_math.h's exp and sigmoid: without branches or library calls, so
// that the loop of a hook is vectorised. Relative errors are in units of 2^-24.
#include <bit>
#include <cmath>
#include <cstdint>

namespace attend::exact {

// x = 2^exponent * mantissa for normal x > 0, mantissa in [1/sqrt 2, sqrt 2).
struct Scaled {
  float mantissa, exponent;
};
[[gnu::always_inline]] inline Scaled scaled(float x) {
  constexpr int32_t kRootHalf = 0x3f3504f3;
  const int32_t bits = std::bit_cast<int32_t>(x) - kRootHalf;
  return {std::bit_cast<float>((bits & 0x007fffff) + kRootHalf), static_cast<float>(bits >> 23)};
}

// ln m = 2 atanh((m - 1) / (m + 1)), whose series is cut after s^9 (|s| < 0.172: 2e-9). Error 3.
[[gnu::always_inline]] inline float log_of_mantissa(float m) {
  const float s = (m - 1) / (m + 1), z = s * s;
  float p = std::fma(2.0f / 9, z, 2.0f / 7);
  p = std::fma(p, z, 2.0f / 5);
  p = std::fma(p, z, 2.0f / 3);
  return std::fma(p * z, s, 2 * s);
}

// ln x for normal x > 0. Error 4 (ln 2 is split so that its product with the exponent is exact).
[[gnu::always_inline]] inline float log_of(float x) {
  const Scaled parts = scaled(x);
  return std::fma(parts.exponent, 0.693145752f,
                  std::fma(parts.exponent, 1.42860677e-6f, log_of_mantissa(parts.mantissa)));
}

// 2^n e^r for integral n, |n| < 126, and |r| < 0.36, by the series of e^r cut after r^7 (7e-9). Error 2.
[[gnu::always_inline]] inline float scaled_exp(float n, float r) {
  float p = std::fma(1.0f / 5040, r, 1.0f / 720);
  p = std::fma(p, r, 1.0f / 120);
  p = std::fma(p, r, 1.0f / 24);
  p = std::fma(p, r, 1.0f / 6);
  p = std::fma(p, r, 0.5f);
  p = std::fma(p, r, 1.0f);
  p = std::fma(p, r, 1.0f);
  return std::bit_cast<float>(std::bit_cast<int32_t>(p) + (static_cast<int32_t>(n) << 23));
}

[[gnu::always_inline]] inline float rounded(float x) {  // for |x| < 2^22
  return (x + 12582912.0f) - 12582912.0f;
}

// x^p for x >= 1, 0 <= p <= 2 and x^p < 2^120: with x = 2^e m it is 2^(p e + p log2 m), whose product p e does not
// round. Error 10: that of p log2 m (at most 1, error 5), of the sum (1) and of the series, times ln 2.
[[gnu::always_inline]] inline float power_of(float x, float p) {
  const Scaled parts = scaled(x);
  const float t = p * (log_of_mantissa(parts.mantissa) * 1.44269504f);
  const float n = rounded(std::fma(p, parts.exponent, t));
  return scaled_exp(n, (std::fma(p, parts.exponent, -n) + t) * 0.693147181f);
}

}  // namespace attend::exact
