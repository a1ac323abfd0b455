#if defined(__aarch64__)
#include "hwy/detect_targets.h"
#undef HWY_TARGET
#define HWY_TARGET HWY_NEON
#include "simd/split_kernel-inl.h"
#include "simd/split_table.h"

namespace attend {
const SplitKernels kSplitNeon = {N_NEON::attend_split, N_NEON::scale, N_NEON::fold, N_NEON::finish, N_NEON::gather};
}
#endif
