#if defined(__x86_64__)
#include "hwy/detect_targets.h"
#undef HWY_TARGET
#define HWY_TARGET HWY_AVX3
#include "simd/backward_kernel-inl.h"
#include "simd/backward_table.h"

namespace attend {
const BackwardKernels kBackwardAvx512 = {N_AVX3::backward_prepare, N_AVX3::backward_block, N_AVX3::scale_rows};
}
#endif
