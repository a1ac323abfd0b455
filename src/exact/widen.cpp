#include "exact/widen.h"

#include <algorithm>
#include <bit>

#include "attend/simd/hook.h"

namespace attend::exact {
namespace {

struct Widen {
  [[gnu::always_inline]] static inline void half(const F16* x, int64_t n, float* to) {
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) {
      // As to_f32(), without its branch: shifted into place the exponent is 112 too small.
      const uint32_t sign = static_cast<uint32_t>(x[c].bits & 0x8000u) << 16, magnitude = x[c].bits & 0x7fffu;
      const uint32_t finite = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude << 13) * 0x1p112f);
      const uint32_t other = 0x7f800000u | (magnitude & 0x3ffu) << 13;
      to[c] = std::bit_cast<float>(sign | (magnitude >= 0x7c00u ? other : finite));
    }
  }
  [[gnu::always_inline]] static inline void brain(const BF16* x, int64_t n, float* to) {
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) to[c] = std::bit_cast<float>(static_cast<uint32_t>(x[c].bits) << 16);
  }
  ATTEND_TARGET_AVX2 static void avx2(const View& x, int64_t offset, int64_t n, float* to) {
    x.type == DType::kF16 ? half(x.as<F16>() + offset, n, to) : brain(x.as<BF16>() + offset, n, to);
  }
  ATTEND_TARGET_AVX512 static void avx512(const View& x, int64_t offset, int64_t n, float* to) {
    x.type == DType::kF16 ? half(x.as<F16>() + offset, n, to) : brain(x.as<BF16>() + offset, n, to);
  }
};

}  // namespace

void widen(const View& x, int64_t offset, int64_t n, Isa isa, float* to) {
  if (x.type == DType::kF32) {
    std::copy_n(x.as<float>() + offset, n, to);
  } else if (isa == Isa::kAvx2) {
    Widen::avx2(x, offset, n, to);
  } else {
    Widen::avx512(x, offset, n, to);
  }
}

}  // namespace attend::exact
