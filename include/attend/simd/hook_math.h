#pragma once
// Functions that the compiler can vectorise inside hooks: no branches, no calls.
#include <bit>
#include <cstdint>

namespace attend {

// e^x with a relative error below 2e-7 for x in [-87, 88]; 0 below, e^88 above, a NaN stays.
[[gnu::always_inline]] inline float hook_exp(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the rounded integer in the low bits
  float inside = x < -87.0f ? -87.0f : x;
  inside = inside > 88.0f ? 88.0f : inside;
  const float shifted = __builtin_fmaf(inside, 1.44269504088896341f, kRound);
  const float n = shifted - kRound;
  const float r = __builtin_fmaf(n, 2.12194440e-4f, __builtin_fmaf(n, -0.693359375f, inside));  // ln 2 in two parts
  float p = 1.0f / 5040;
  p = __builtin_fmaf(p, r, 1.0f / 720);
  p = __builtin_fmaf(p, r, 1.0f / 120);
  p = __builtin_fmaf(p, r, 1.0f / 24);
  p = __builtin_fmaf(p, r, 1.0f / 6);
  p = __builtin_fmaf(p, r, 0.5f);
  p = __builtin_fmaf(p, r, 1.0f);
  p = __builtin_fmaf(p, r, 1.0f);
  const float e = p * std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) + 127u) << 23);
  return x < -87.0f ? 0.0f : e;
}

// 1 / (1 + e^-x), relative error below 4e-7 for x above -87.
[[gnu::always_inline]] inline float hook_sigmoid(float x) {
  return 1.0f / (1.0f + hook_exp(-x));
}

// ln(1 + u) for u in [0, 1], relative error below 3e-7: 2 atanh(u / (2 + u)).
[[gnu::always_inline]] inline float hook_log1p(float u) {
  const float t = u / (2.0f + u), z = t * t;
  float p = 1.0f / 15;
  p = __builtin_fmaf(p, z, 1.0f / 13);
  p = __builtin_fmaf(p, z, 1.0f / 11);
  p = __builtin_fmaf(p, z, 1.0f / 9);
  p = __builtin_fmaf(p, z, 1.0f / 7);
  p = __builtin_fmaf(p, z, 1.0f / 5);
  p = __builtin_fmaf(p, z, 1.0f / 3);
  p = __builtin_fmaf(p, z, 1.0f);
  return 2.0f * t * p;
}

// ln(1 + e^x), relative error below 1e-6 for x above -87.
[[gnu::always_inline]] inline float hook_softplus(float x) {
  const float positive = x > 0.0f ? x : 0.0f, size = x > 0.0f ? x : -x;
  return positive + hook_log1p(hook_exp(-size));
}

}  // namespace attend
