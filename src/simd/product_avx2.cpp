// Products for AVX2 with FMA and F16C.
#include "simd/product_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>

#include "simd/target.h"

#define ATTEND_INTEGER_WIDTH 2
#define ATTEND_F32_WIDTH 6

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi,bmi2,lzcnt"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,lzcnt")
#endif

namespace attend::avx2 {
namespace {

#include "simd/vector_avx2.inc"

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

}  // namespace attend::avx2

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
