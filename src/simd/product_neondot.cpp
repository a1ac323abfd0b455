// Products for AArch64 with int8 dot products (ASIMDDP).
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

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

namespace attend::neondot {
namespace {

#include "simd/vector_neon.inc"

constexpr bool kBytePlanes = false;  // of int16 activations

// The weights' bytes are below 64, so that they may count as signed.
ATTEND_INLINE Int dot_pair(Int sum, Int w0, Int w1, Int x0, Int x1) {
  auto half = [](int32x4_t s, int32x4_t a, int32x4_t b, int32x4_t x, int32x4_t y) __attribute__((always_inline)) {
    return vdotq_s32(vdotq_s32(s, as_bytes(a), as_bytes(x)), as_bytes(b), as_bytes(y));
  };
  return {half(sum.low, w0.low, w1.low, x0.low, x1.low), half(sum.high, w0.high, w1.high, x0.high, x1.high)};
}

#include "simd/product_integer.inc"

#include "simd/product_quantise.inc"

#include "simd/product_f32.inc"

#include "simd/product_limits.inc"

}  // namespace

extern const ProductKernels kProductKernels = {ATTEND_INTEGER_WIDTH, ATTEND_F32_WIDTH, quantise_int8,
                                               quantise_int16,       integer_panels,   f32_panels};

extern const ProductLimits kProductLimits = {integer_limit<false>, integer_limit<true>, kLimitMultiplyAdds};

}  // namespace attend::neondot

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
