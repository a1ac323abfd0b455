#pragma once
#include "attend/simd/backward.h"

namespace attend {
extern const BackwardKernels kBackwardAvx2, kBackwardAvx512, kBackwardNeon;
}
