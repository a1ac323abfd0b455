// Included once per instruction set after HWY_TARGET is set.
#include "attend/simd/limits.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
#include "simd/math-inl.h"

namespace attend {
namespace HWY_NAMESPACE {

inline constexpr int kChains = HWY_TARGET == HWY_AVX2 ? 12 : 24;  // covers the latency, fits the registers

HWY_NOINLINE float multiply_add(int64_t rounds) noexcept {
  const F32 d;
  Vec acc[kChains];
  for (int i = 0; i < kChains; ++i) acc[i] = hn::Set(d, static_cast<float>(i));
  Vec a = hn::Set(d, 0.5f);
  const Vec b = hn::Set(d, 0.25f);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) acc[i] = hn::MulAdd(acc[i], a, b);
  }
  for (int i = 1; i < kChains; ++i) acc[0] = hn::Add(acc[0], acc[i]);
  return hn::GetLane(hn::SumOfLanes(d, acc[0]));
}

HWY_NOINLINE void exponential(float* x, int64_t count) noexcept {
  const F32 d;
  for (int64_t i = 0; i + 4 * kLanes <= count; i += 4 * kLanes)
    for (int v = 0; v < 4; ++v) hn::StoreU(exp_of(hn::LoadU(d, x + i + v * kLanes)), d, x + i + v * kLanes);
}

HWY_NOINLINE uint64_t read(const void* data, int64_t bytes) noexcept {
  const hn::ScalableTag<uint64_t> d;
  const int64_t lanes = kLanes / 2;
  constexpr int64_t kAhead = 12288 / 8;
  auto sum0 = hn::Zero(d), sum1 = sum0, sum2 = sum0, sum3 = sum0;
  const uint64_t* p = static_cast<const uint64_t*>(data);
  for (int64_t i = 0; i < bytes / 8; i += 4 * lanes) {
    for (int64_t line = 0; line < 4 * lanes; line += 8) __builtin_prefetch(p + i + kAhead + line, 0, 2);
    sum0 = hn::Xor(sum0, hn::LoadU(d, p + i));
    sum1 = hn::Xor(sum1, hn::LoadU(d, p + i + lanes));
    sum2 = hn::Xor(sum2, hn::LoadU(d, p + i + 2 * lanes));
    sum3 = hn::Xor(sum3, hn::LoadU(d, p + i + 3 * lanes));
  }
  return hn::GetLane(hn::Xor(hn::Xor(sum0, sum1), hn::Xor(sum2, sum3)));
}

inline constexpr int64_t kFlopsPerRound = 2 * kLanes * kChains;

}  // namespace HWY_NAMESPACE
}  // namespace attend
HWY_AFTER_NAMESPACE();
