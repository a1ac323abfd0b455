#include "attend/simd/row_ops.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "attend/simd/hook_math.h"
#include "attend/tensor/error.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace attend {
namespace {

#define ATTEND_INLINE [[gnu::always_inline]] inline

constexpr int64_t kLanes = 16;  // of every reduction, whatever the width of a vector

template <class T>
ATTEND_INLINE T fold(T* lane) {
  for (int64_t half = kLanes / 2; half; half /= 2)
    for (int64_t l = 0; l < half; ++l) lane[l] += lane[l + half];
  return lane[0];
}

ATTEND_INLINE void rms_norm(const float* x, const float* weight, int64_t n, double epsilon, float* y) {
  double lane[kLanes] = {};
  const int64_t whole = n / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) lane[l] += static_cast<double>(x[i + l]) * x[i + l];
  }
  for (int64_t i = whole; i < n; ++i) lane[i - whole] += static_cast<double>(x[i]) * x[i];
  const float factor = static_cast<float>(1.0 / std::sqrt(fold(lane) / static_cast<double>(n) + epsilon));
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * factor * weight[i];
}

ATTEND_INLINE void silu_multiply(float* gate, const float* up, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) gate[i] = gate[i] / (1.0f + hook_exp(-gate[i])) * up[i];
}

// tanh(u) = 2 / (1 + exp(-2u)) - 1, so x/2 (1 + tanh(u)) = x / (1 + exp(-2u)).
ATTEND_INLINE void gelu_multiply(float* gate, const float* up, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float x = gate[i];
    const float minus_2u = -1.5957691216057308f * (x + 0.044715f * x * x * x);
    gate[i] = x / (1.0f + hook_exp(minus_2u)) * up[i];
  }
}

ATTEND_INLINE void add(float* x, const float* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) x[i] += y[i];
}

ATTEND_INLINE void scale(float* x, float factor, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

ATTEND_INLINE void rotate_pairs(float* x, const float* cosine, const float* sine, int64_t pairs) {
#pragma omp simd
  for (int64_t i = 0; i < pairs; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1];
    x[2 * i] = a * cosine[i] - b * sine[i];
    x[2 * i + 1] = a * sine[i] + b * cosine[i];
  }
}

ATTEND_INLINE void rotate_halves(float* x, const float* cosine, const float* sine, int64_t pairs) {
  float* y = x + pairs;
#pragma omp simd
  for (int64_t i = 0; i < pairs; ++i) {
    const float a = x[i], b = y[i];
    x[i] = a * cosine[i] - b * sine[i];
    y[i] = a * sine[i] + b * cosine[i];
  }
}

// The largest of 16.
ATTEND_INLINE int32_t largest_of(int32_t* lane) {
  for (int64_t half = kLanes / 2; half; half /= 2)
    for (int64_t l = 0; l < half; ++l) lane[l] = lane[l] > lane[l + half] ? lane[l] : lane[l + half];
  return lane[0];
}

// One block of 32 of quantise_row (attend/tensor/quantised_row.h); `kEight` of q8_0, otherwise of q4_0.
template <bool kEight>
ATTEND_INLINE void quantise_block(const float* x, uint8_t* integers, uint8_t* scales) {
  constexpr int64_t kBlock = kQuantisedBlock, kHalf = kBlock / 2;
  // Magnitudes compare as the integers of their bits; those that are not finite come last.
  int32_t magnitude[kBlock], lane[kLanes];
#pragma omp simd
  for (int64_t i = 0; i < kBlock; ++i) magnitude[i] = std::bit_cast<int32_t>(x[i]) & 0x7fffffff;
#pragma omp simd
  for (int64_t l = 0; l < kLanes; ++l)
    lane[l] = magnitude[l] > magnitude[l + kHalf] ? magnitude[l] : magnitude[l + kHalf];
  const int32_t top = largest_of(lane);
  float d = std::bit_cast<float>(top) / 127;
  if (!kEight) {
    int64_t first = 0;
    while (magnitude[first] != top) ++first;
    d = (top == 0 ? 0 : x[first]) / -8;
  }
  F16 stored = to_f16(d);
  if (top >= 0x7f800000 || (stored.bits & 0x7fffu) >= 0x7c00u) stored.bits = 0x7e00u;  // NaN
  std::memcpy(scales, &stored, 2);
  if (stored.bits == 0x7e00u || (stored.bits & 0x7fffu) == 0) {
    std::fill_n(integers, kEight ? kBlock : kHalf, static_cast<uint8_t>(kEight ? 0 : 0x88));
    return;
  }
  const float inverse = 1 / d;
  int32_t q[kBlock];
#pragma omp simd
  for (int64_t i = 0; i < kBlock; ++i) {
    const float scaled = x[i] * inverse;
    if (kEight) {
      const int32_t whole = static_cast<int32_t>(scaled);
      const float part = scaled - static_cast<float>(whole);
      q[i] = whole + (part >= 0.5f ? 1 : 0) - (part <= -0.5f ? 1 : 0);
    } else {
      const int32_t floored = static_cast<int32_t>(scaled + 8.5f);
      q[i] = floored < 15 ? floored : 15;
    }
  }
  if (kEight) {
#pragma omp simd
    for (int64_t i = 0; i < kBlock; ++i) integers[i] = static_cast<uint8_t>(q[i]);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < kHalf; ++i) integers[i] = static_cast<uint8_t>(q[i] | q[i + kHalf] << 4);
  }
}

template <bool kEight>
ATTEND_INLINE void quantise(const float* x, int64_t n, uint8_t* row) {
  uint8_t* scales = row + (kEight ? n : n / 2);
  for (int64_t i = 0; i < n; i += kQuantisedBlock)
    quantise_block<kEight>(x + i, row + (kEight ? i : i / 2), scales + i / kQuantisedBlock * 2);
}

ATTEND_INLINE void narrow(const float* x, int64_t n, DType type, void* out) {
  if (type == DType::kF32) {
    std::memcpy(out, x, static_cast<size_t>(n) * sizeof(float));
  } else if (type == DType::kBF16) {
    BF16* y = static_cast<BF16*>(out);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t bits = std::bit_cast<uint32_t>(x[i]);
      const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
      y[i].bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16 | 0x40u) : rounded);
    }
  } else if (type == DType::kQ8_0) {
    quantise<true>(x, n, static_cast<uint8_t*>(out));
  } else if (type == DType::kQ4_0) {
    quantise<false>(x, n, static_cast<uint8_t*>(out));
  } else if (type == DType::kF16) {
    F16* y = static_cast<F16*>(out);
    for (int64_t i = 0; i < n; ++i) y[i] = to_f16(x[i]);
  } else {
    throw Error(ErrorKind::kUnsupported, "narrow", "type", name_of(type), "is stored by a coding of its own");
  }
}

ATTEND_INLINE void add_angles(const double* cosine_p, const double* sine_p, const double* cosine_q,
                              const double* sine_q, int64_t n, float* cosine, float* sine) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    cosine[i] = static_cast<float>(cosine_p[i] * cosine_q[i] - sine_p[i] * sine_q[i]);
    sine[i] = static_cast<float>(sine_p[i] * cosine_q[i] + cosine_p[i] * sine_q[i]);
  }
}

ATTEND_INLINE float largest_value(const float* x, int64_t n) {
  float lane[kLanes];
  for (float& l : lane) l = x[0];
  const int64_t whole = n / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) lane[l] = x[i + l] > lane[l] ? x[i + l] : lane[l];
  }
  for (int64_t i = whole; i < n; ++i) lane[0] = std::max(lane[0], x[i]);
  return *std::max_element(lane, lane + kLanes);
}

ATTEND_INLINE double log_sum_exp(const float* x, int64_t n) {
  const float high = largest_value(x, n);
  double lane[kLanes] = {};
  const int64_t whole = n / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) lane[l] += static_cast<double>(hook_exp(x[i + l] - high));
  }
  for (int64_t i = whole; i < n; ++i) lane[i - whole] += static_cast<double>(hook_exp(x[i] - high));
  return static_cast<double>(high) + std::log(fold(lane));
}

ATTEND_INLINE double divergence_term(float x, double x_lse, float y, double y_lse) {
  const double lp = x - x_lse;
  return static_cast<double>(hook_exp(static_cast<float>(lp))) * (lp - (y - y_lse));
}

ATTEND_INLINE double divergence(const float* x, double x_lse, const float* y, double y_lse, int64_t n) {
  double lane[kLanes] = {};
  const int64_t whole = n / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
#pragma omp simd
    for (int64_t l = 0; l < kLanes; ++l) lane[l] += divergence_term(x[i + l], x_lse, y[i + l], y_lse);
  }
  for (int64_t i = whole; i < n; ++i) lane[i - whole] += divergence_term(x[i], x_lse, y[i], y_lse);
  return fold(lane);
}

ATTEND_INLINE int64_t largest(const float* x, int64_t n) {
  const float high = largest_value(x, n);
  for (int64_t i = 0; i < n; ++i)
    if (x[i] == high) return i;
  return 0;
}

#undef ATTEND_INLINE

// One copy of every body for a target.
#define ATTEND_ROW_OPS(NAME, TARGET, NARROW)                                                                       \
  struct NAME {                                                                                                    \
    TARGET static void norm(const float* x, const float* w, int64_t n, double e, float* y) {                       \
      rms_norm(x, w, n, e, y);                                                                                     \
    }                                                                                                              \
    TARGET static void silu(float* g, const float* u, int64_t n) { silu_multiply(g, u, n); }                       \
    TARGET static void gelu(float* g, const float* u, int64_t n) { gelu_multiply(g, u, n); }                       \
    TARGET static void sum(float* x, const float* y, int64_t n) { add(x, y, n); }                                  \
    TARGET static void times(float* x, float f, int64_t n) { scale(x, f, n); }                                     \
    TARGET static void pairs(float* x, const float* c, const float* s, int64_t n) { rotate_pairs(x, c, s, n); }    \
    TARGET static void halves(float* x, const float* c, const float* s, int64_t n) { rotate_halves(x, c, s, n); }  \
    TARGET static void store(const float* x, int64_t n, DType t, void* out) { NARROW(x, n, t, out); }              \
    TARGET static void angles(const double* cp, const double* sp, const double* cq, const double* sq, int64_t n,   \
                              float* c, float* s) {                                                                \
      add_angles(cp, sp, cq, sq, n, c, s);                                                                         \
    }                                                                                                              \
    TARGET static double lse(const float* x, int64_t n) { return log_sum_exp(x, n); }                              \
    TARGET static double kl(const float* x, double a, const float* y, double b, int64_t n) {                       \
      return divergence(x, a, y, b, n);                                                                            \
    }                                                                                                              \
    TARGET static int64_t argmax(const float* x, int64_t n) { return largest(x, n); }                              \
    static constexpr RowOps table = {norm, silu, gelu, sum, times, pairs, halves, store, angles, lse, kl, argmax}; \
  }

#if defined(__x86_64__)
// F16C rounds as to_f16 does, NaN included.
[[gnu::always_inline, gnu::target("avx2,fma,f16c")]] inline void narrow_f16c(const float* x, int64_t n, DType type,
                                                                             void* out) {
  if (type != DType::kF16) return narrow(x, n, type, out);
  F16* y = static_cast<F16*>(out);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
  for (; i < n; ++i) y[i] = to_f16(x[i]);
}

ATTEND_ROW_OPS(RowOpsAvx2, [[gnu::target("avx2,fma,f16c")]], narrow_f16c);
#if defined(__clang__)
#define ATTEND_WIDE ""  // knows no such target
#else
#define ATTEND_WIDE ",prefer-vector-width=512"
#endif
ATTEND_ROW_OPS(RowOpsAvx512, [[gnu::target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl" ATTEND_WIDE)]],
               narrow_f16c);
#undef ATTEND_WIDE
#elif defined(__aarch64__)
// So does this.
[[gnu::always_inline]] inline void narrow_neon(const float* x, int64_t n, DType type, void* out) {
  if (type != DType::kF16) return narrow(x, n, type, out);
  F16* y = static_cast<F16*>(out);
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) vst1_u16(&y[i].bits, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(x + i))));
  for (; i < n; ++i) y[i] = to_f16(x[i]);
}

ATTEND_ROW_OPS(RowOpsNeon, , narrow_neon);
#endif

#undef ATTEND_ROW_OPS

}  // namespace

const RowOps& row_ops(Isa isa) {
#if defined(__x86_64__)
  return isa == Isa::kAvx2 ? RowOpsAvx2::table : RowOpsAvx512::table;
#elif defined(__aarch64__)
  if (has_neon(isa)) return RowOpsNeon::table;
#endif
  throw Error(ErrorKind::kUnsupported, "simd", "instruction set", name_of(isa), "has no row operations yet");
}

}  // namespace attend
