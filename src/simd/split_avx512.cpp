#if defined(__x86_64__)
#include "hwy/detect_targets.h"
#undef HWY_TARGET
#define HWY_TARGET HWY_AVX3
#include "simd/split_kernel-inl.h"
#include "simd/split_table.h"

namespace attend {
const SplitKernels kSplitAvx512 = {N_AVX3::attend_split, N_AVX3::scale, N_AVX3::fold, N_AVX3::finish, N_AVX3::gather};
}
#endif
