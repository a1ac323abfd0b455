#if defined(__x86_64__)
#include "hwy/detect_targets.h"
#undef HWY_TARGET
#define HWY_TARGET HWY_AVX2
#include "simd/split_kernel-inl.h"
#include "simd/split_table.h"

namespace attend {
const SplitKernels kSplitAvx2 = {N_AVX2::attend_split, N_AVX2::scale, N_AVX2::fold, N_AVX2::finish, N_AVX2::gather};
}
#endif
