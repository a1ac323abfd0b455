#if defined(__x86_64__)
#include "hwy/detect_targets.h"
#undef HWY_TARGET
#define HWY_TARGET HWY_AVX2
#include "simd/backward_kernel-inl.h"
#include "simd/backward_table.h"

namespace attend {
const BackwardKernels kBackwardAvx2 = {N_AVX2::backward_prepare, N_AVX2::backward_block, N_AVX2::scale_rows};
}
#endif
