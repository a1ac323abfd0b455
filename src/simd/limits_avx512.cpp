#if defined(__x86_64__)
#include "hwy/detect_targets.h"
#undef HWY_TARGET
#define HWY_TARGET HWY_AVX3
#include "simd/limits_kernel-inl.h"

namespace attend {
extern const LimitKernels kLimitsAvx512;
const LimitKernels kLimitsAvx512 = {N_AVX3::multiply_add, N_AVX3::kFlopsPerRound, N_AVX3::exponential, N_AVX3::read};
}  // namespace attend
#endif
