// Products for AArch64 with its Advanced SIMD (ASIMD).
#include "simd/product_kernels.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>

#include "simd/target.h"

#define ATTEND_INTEGER_WIDTH 2
#define ATTEND_F32_WIDTH 6

namespace attend::neon {
namespace {

#include "simd/vector_neon.inc"

constexpr bool kBytePlanes = false;  // of int16 activations

ATTEND_INLINE Int dot_pair(Int sum, Int w0, Int w1, Int x0, Int x1) {
  return add32(sum, dot_small(w0, w1, x0, x1));
}

#include "simd/product_integer.inc"

#include "simd/product_quantise.inc"

#include "simd/product_f32.inc"

#include "simd/product_limits.inc"

}  // namespace

extern const ProductKernels kProductKernels = {ATTEND_INTEGER_WIDTH, ATTEND_F32_WIDTH, quantise_int8,
                                               quantise_int16,       integer_panels,   f32_panels};

extern const ProductLimits kProductLimits = {integer_limit<false>, integer_limit<true>, kLimitMultiplyAdds};

}  // namespace attend::neon
#endif
