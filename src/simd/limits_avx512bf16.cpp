#if defined(__x86_64__)
#include "simd/target_avx512bf16.h"
//
#include <immintrin.h>

#include "simd/limits_kernel-inl.h"

HWY_BEFORE_NAMESPACE();
namespace attend {
namespace N_AVX3_DL {

float bf16_multiply_add(int64_t rounds) noexcept {
  __m512 acc[kChains];
  for (int i = 0; i < kChains; ++i) acc[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512bh a = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3e803e80)),
                 b = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3f003f00));
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) acc[i] = _mm512_dpbf16_ps(acc[i], a, b);
  }
  for (int i = 1; i < kChains; ++i) acc[0] = _mm512_add_ps(acc[0], acc[i]);
  return _mm512_reduce_add_ps(acc[0]);
}

}  // namespace N_AVX3_DL
}  // namespace attend
HWY_AFTER_NAMESPACE();

namespace attend {
extern const LimitKernels kLimitsAvx512Bf16;
const LimitKernels kLimitsAvx512Bf16 = {
    .multiply_add = N_AVX3_DL::multiply_add,
    .flops_per_round = N_AVX3_DL::kFlopsPerRound,
    .exponential = N_AVX3_DL::exponential,
    .read = N_AVX3_DL::read,
    .bf16_multiply_add = N_AVX3_DL::bf16_multiply_add,
    .bf16_flops_per_round = 2 * N_AVX3_DL::kFlopsPerRound,
};
}  // namespace attend
#endif
