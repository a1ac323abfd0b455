#if defined(__x86_64__)
#include "hwy/detect_targets.h"
#undef HWY_TARGET
#define HWY_TARGET HWY_AVX2
#include "simd/limits_kernel-inl.h"

namespace attend {
extern const LimitKernels kLimitsAvx2;
const LimitKernels kLimitsAvx2 = {N_AVX2::multiply_add, N_AVX2::kFlopsPerRound, N_AVX2::exponential, N_AVX2::read};
}  // namespace attend
#endif
