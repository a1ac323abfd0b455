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

#define ATTEND_INT8_WIDTH 2
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

template <int kBits>
ATTEND_INLINE Int dot_pair(Int sum, Int w0, Int w1, Int x0, Int x1) {
  if constexpr (kBits < 8) return add32(sum, dot_small(w0, w1, x0, x1));
  return add32(sum, add32(dot_even_odd(w0, x0), dot_even_odd(w1, x1)));
}

#include "simd/product_int8.inc"

#include "simd/product_f32.inc"

}  // namespace

extern const ProductKernels kProductKernels = {ATTEND_INT8_WIDTH, ATTEND_F32_WIDTH, quantise, int8_panels, f32_panels};

}  // namespace attend::avx2

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
