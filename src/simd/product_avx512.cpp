// Products for AVX-512 (F, DQ, CD, BW, VL).
#include "simd/product_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>

#include "simd/target.h"

#define ATTEND_INTEGER_WIDTH 6
#define ATTEND_F32_WIDTH 12

#if defined(__clang__)
#pragma clang attribute push(                                                                       \
    __attribute__((target("avx512f,avx512dq,avx512cd,avx512bw,avx512vl,fma,f16c,bmi,bmi2,lzcnt"))), \
    apply_to = function)
#else
#pragma GCC push_options
// GCC 12's own headers start unused operands as `__m512 y = y`.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512dq,avx512cd,avx512bw,avx512vl,fma,f16c,bmi,bmi2,lzcnt")
#endif

namespace attend::avx512 {
namespace {

#include "simd/vector_avx512.inc"

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

}  // namespace attend::avx512

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
