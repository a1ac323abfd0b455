#pragma once
#include "attend/simd/split.h"

namespace attend {
extern const SplitKernels kSplitAvx2, kSplitAvx512, kSplitAvx512Bf16, kSplitAmx, kSplitNeon;
}
