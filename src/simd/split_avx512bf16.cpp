#if defined(__x86_64__)
#include "simd/target_avx512bf16.h"
//
#include "simd/split_kernel-inl.h"
#include "simd/split_table.h"

namespace attend {
const SplitKernels kSplitAvx512Bf16 = {N_AVX3_DL::attend_split, N_AVX3_DL::scale, N_AVX3_DL::fold, N_AVX3_DL::finish,
                                       N_AVX3_DL::gather};
const SplitKernels kSplitAmx = {N_AVX3_DL::attend_split_amx, N_AVX3_DL::scale, N_AVX3_DL::fold, N_AVX3_DL::finish,
                                N_AVX3_DL::gather};
}  // namespace attend
#endif
