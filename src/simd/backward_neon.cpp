#if defined(__aarch64__)
#include "hwy/detect_targets.h"
#undef HWY_TARGET
#define HWY_TARGET HWY_NEON
#include "simd/backward_kernel-inl.h"
#include "simd/backward_table.h"

namespace attend {
const BackwardKernels kBackwardNeon = {N_NEON::backward_prepare, N_NEON::backward_block, N_NEON::scale_rows};
}
#endif
