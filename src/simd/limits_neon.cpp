#if defined(__aarch64__)
#include "hwy/detect_targets.h"
#undef HWY_TARGET
#define HWY_TARGET HWY_NEON
#include "simd/limits_kernel-inl.h"

namespace attend {
extern const LimitKernels kLimitsNeon;
const LimitKernels kLimitsNeon = {N_NEON::multiply_add, N_NEON::kFlopsPerRound, N_NEON::exponential, N_NEON::read};
}  // namespace attend
#endif
