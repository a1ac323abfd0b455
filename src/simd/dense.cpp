#include "attend/simd/dense.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "attend/simd/hook.h"
#include "attend/simd/hook_math.h"
#include "attend/tensor/error.h"
#include "simd/target.h"

namespace attend {
namespace {

constexpr int kLanes = 16;  // of every reduction, whatever the width of a vector
constexpr float kHidden = -std::numeric_limits<float>::infinity();

ATTEND_INLINE float value_of(float x) {
  return x;
}
ATTEND_INLINE float value_of(BF16 x) {
  return to_f32(x);
}
ATTEND_INLINE float value_of(F16 x) {
  return to_f32(x);
}

// to[c * to_stride + j] = from[j][c] of 8 x 8 numbers: three times rows i and i + 4 become rows 2 i and 2 i + 1, their
// elements by turns.
ATTEND_INLINE void transpose(const float (&from)[8][16], int column, float* to, int64_t to_stride) {
  typedef float Row __attribute__((vector_size(32)));
  Row a[8], b[8];
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) std::memcpy(&a[j], from[j] + column, sizeof(Row));
#pragma GCC unroll 3
  for (int round = 0; round < 3; ++round) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      b[2 * i] = __builtin_shufflevector(a[i], a[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
      b[2 * i + 1] = __builtin_shufflevector(a[i], a[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) a[i] = b[i];
  }
#pragma GCC unroll 8
  for (int c = 0; c < 8; ++c) std::memcpy(to + c * to_stride, &a[c], sizeof(Row));
}

template <class T>
ATTEND_INLINE void pack_typed(const T* x, int64_t stride, int64_t keys, int64_t d, float* panel) {
  // Blocks of 8 keys x 16 columns: widened by rows, written by columns, in cache lines that are already there.
  float block[8][16];
  int64_t j0 = 0;
  for (; j0 + 8 <= keys; j0 += 8)
    for (int64_t c0 = 0; c0 < d; c0 += 16) {
      const int64_t columns = std::min<int64_t>(16, d - c0);
      for (int64_t j = 0; j < 8; ++j) {
        const T* row = x + (j0 + j) * stride + c0;
        if (columns == 16) {
#pragma omp simd
          for (int c = 0; c < 16; ++c) block[j][c] = value_of(row[c]);
        } else {
          for (int64_t c = 0; c < columns; ++c) block[j][c] = value_of(row[c]);
        }
      }
      if (columns == 16) {
        transpose(block, 0, panel + c0 * kPanelKeys + j0, kPanelKeys);
        transpose(block, 8, panel + (c0 + 8) * kPanelKeys + j0, kPanelKeys);
        continue;
      }
      for (int64_t c = 0; c < columns; ++c) {
        float* to = panel + (c0 + c) * kPanelKeys + j0;
        for (int j = 0; j < 8; ++j) to[j] = block[j][c];
      }
    }
  for (; j0 < keys; ++j0)
    for (int64_t c = 0; c < d; ++c) panel[c * kPanelKeys + j0] = value_of(x[j0 * stride + c]);
  if (keys == kPanelKeys) return;
  for (int64_t c = 0; c < d; ++c) std::fill(panel + c * kPanelKeys + keys, panel + (c + 1) * kPanelKeys, 0.0f);
}

ATTEND_INLINE float scale_of(const uint8_t* p) {
  F16 stored;
  std::memcpy(&stored, p, 2);
  return value_of(stored);
}

// 32 integers of 4 or 2 bits, from the block's first byte on.
template <int kBits>
ATTEND_INLINE void widen_integers(const uint8_t* q, int* out) {
  constexpr int kHalf = kQuantisedBlock / 2;
  if (kBits == 4) {
#pragma omp simd
    for (int c = 0; c < kHalf; ++c) out[c] = q[c] & 15;
#pragma omp simd
    for (int c = 0; c < kHalf; ++c) out[c + kHalf] = q[c] >> 4;
  } else {
    for (int c = 0; c < kQuantisedBlock; ++c) out[c] = q[c / 4] >> (c % 4 * 2) & 3;
  }
}

// Block b of a row of d elements of q4_1 or q2_1.
template <int kBits>
ATTEND_INLINE void widen_affine(const uint8_t* row, int64_t d, int64_t b, float* out) {
  const uint8_t* scales = row + d * kBits / 8;
  const float scale = scale_of(scales + 2 * b), offset = scale_of(scales + d / kQuantisedBlock * 2 + 2 * b);
  int q[kQuantisedBlock];
  widen_integers<kBits>(row + b * kQuantisedBlock * kBits / 8, q);
#pragma omp simd
  for (int c = 0; c < kQuantisedBlock; ++c) out[c] = static_cast<float>(q[c]) * scale + offset;
}

// The same of q4_c or q2_c.
template <int kBits>
ATTEND_INLINE void widen_channels(const RowRun& x, int64_t r, int64_t b, float* out) {
  int q[kQuantisedBlock];
  widen_integers<kBits>(static_cast<const uint8_t*>(x.row(r)) + b * kQuantisedBlock * kBits / 8, q);
  const F16 *scale = x.scale + b * kQuantisedBlock, *offset = x.offset + b * kQuantisedBlock;
#pragma omp simd
  for (int c = 0; c < kQuantisedBlock; ++c)
    out[c] = static_cast<float>(q[c]) * value_of(scale[c]) + value_of(offset[c]);
}

// Block b of a row of d elements (attend/tensor/quantised_row.h).
ATTEND_INLINE void widen_block(DType type, const uint8_t* row, int64_t d, int64_t b, float* out) {
  constexpr int kHalf = kQuantisedBlock / 2;
  if (type == DType::kQ4_1) return widen_affine<4>(row, d, b, out);
  if (type == DType::kQ2_1) return widen_affine<2>(row, d, b, out);
  if (type == DType::kQ8_0) {
    const float scale = scale_of(row + d + 2 * b);
    const int8_t* q = reinterpret_cast<const int8_t*>(row) + b * kQuantisedBlock;
#pragma omp simd
    for (int c = 0; c < kQuantisedBlock; ++c) out[c] = static_cast<float>(q[c]) * scale;
  } else {
    const float scale = scale_of(row + d / 2 + 2 * b);
    const uint8_t* q = row + b * kHalf;
#pragma omp simd
    for (int c = 0; c < kHalf; ++c) out[c] = static_cast<float>((q[c] & 15) - 8) * scale;
#pragma omp simd
    for (int c = 0; c < kHalf; ++c) out[c + kHalf] = static_cast<float>((q[c] >> 4) - 8) * scale;
  }
}

ATTEND_INLINE void pack_quantised(DType type, const uint8_t* x, int64_t stride, int64_t keys, int64_t d, float* panel) {
  float block[8][kQuantisedBlock];
  for (int64_t j0 = 0; j0 < keys; j0 += 8) {
    const int64_t rows = std::min<int64_t>(8, keys - j0);
    for (int64_t c0 = 0; c0 < d; c0 += kQuantisedBlock) {
      for (int64_t j = 0; j < rows; ++j) widen_block(type, x + (j0 + j) * stride, d, c0 / kQuantisedBlock, block[j]);
      for (int64_t c = 0; c < kQuantisedBlock; ++c)
        for (int64_t j = 0; j < rows; ++j) panel[(c0 + c) * kPanelKeys + j0 + j] = block[j][c];
    }
  }
  if (keys == kPanelKeys) return;
  for (int64_t c = 0; c < d; ++c) std::fill(panel + c * kPanelKeys + keys, panel + (c + 1) * kPanelKeys, 0.0f);
}

ATTEND_INLINE void widen_quantised(DType type, const uint8_t* x, int64_t stride, int64_t rows, int64_t width,
                                   float* out, int64_t to) {
  for (int64_t j = 0; j < rows; ++j)
    for (int64_t c = 0; c < width; c += kQuantisedBlock)
      widen_block(type, x + j * stride, width, c / kQuantisedBlock, out + j * to + c);
}

template <class T>
ATTEND_INLINE void widen_typed(const T* x, int64_t stride, int64_t rows, int64_t width, float* out, int64_t to) {
  for (int64_t j = 0; j < rows; ++j) {
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) out[j * to + c] = value_of(x[j * stride + c]);
  }
}

ATTEND_INLINE void pack(DType type, const void* x, int64_t stride, int64_t keys, int64_t d, float* panel) {
  if (type == DType::kF16) {
    pack_typed(static_cast<const F16*>(x), stride, keys, d, panel);
  } else if (type == DType::kBF16) {
    pack_typed(static_cast<const BF16*>(x), stride, keys, d, panel);
  } else if (is_quantised(type)) {
    pack_quantised(type, static_cast<const uint8_t*>(x), stride, keys, d, panel);
  } else {
    pack_typed(static_cast<const float*>(x), stride, keys, d, panel);
  }
}

ATTEND_INLINE void widen(DType type, const void* x, int64_t stride, int64_t rows, int64_t width, float* out,
                         int64_t to) {
  if (type == DType::kF16) {
    widen_typed(static_cast<const F16*>(x), stride, rows, width, out, to);
  } else if (type == DType::kBF16) {
    widen_typed(static_cast<const BF16*>(x), stride, rows, width, out, to);
  } else if (is_quantised(type)) {
    widen_quantised(type, static_cast<const uint8_t*>(x), stride, rows, width, out, to);
  } else {
    widen_typed(static_cast<const float*>(x), stride, rows, width, out, to);
  }
}

ATTEND_INLINE void widen_channel_block(const RowRun& x, int64_t r, int64_t b, float* out) {
  if (x.type == DType::kQ4_C) return widen_channels<4>(x, r, b, out);
  widen_channels<2>(x, r, b, out);
}

ATTEND_INLINE void pack_run(const RowRun& x, int64_t keys, int64_t d, float* panel) {
  if (!is_by_channel(x.type)) return pack(x.type, x.data, x.stride, keys, d, panel);
  float block[kQuantisedBlock];
  for (int64_t j = 0; j < keys; ++j)
    for (int64_t b = 0; b < d / kQuantisedBlock; ++b) {
      widen_channel_block(x, j, b, block);
      for (int64_t c = 0; c < kQuantisedBlock; ++c) panel[(b * kQuantisedBlock + c) * kPanelKeys + j] = block[c];
    }
  for (int64_t c = 0; c < d; ++c) std::fill(panel + c * kPanelKeys + keys, panel + (c + 1) * kPanelKeys, 0.0f);
}

ATTEND_INLINE void widen_run(const RowRun& x, int64_t rows, int64_t width, float* out, int64_t to) {
  if (!is_by_channel(x.type)) return widen(x.type, x.data, x.stride, rows, width, out, to);
  for (int64_t j = 0; j < rows; ++j)
    for (int64_t b = 0; b < width / kQuantisedBlock; ++b)
      widen_channel_block(x, j, b, out + j * to + b * kQuantisedBlock);
}

// R rows against 32 columns, or 64 of wide vectors, in vectors of W floats. The sums stay in registers, since only
// loops over one vector are left to the vectoriser.
template <int W, int R>
ATTEND_INLINE void dots_block(const float* x, int64_t x_stride, int64_t d, const float* panel, float* s,
                              int64_t stride) {
  constexpr int kColumns = W == 16 ? 64 : 32, kVectors = kColumns / W;
  for (int first = 0; first < kPanelKeys; first += kColumns) {
    float sum[R][kVectors][W] = {};
    for (int64_t c = 0; c < d; ++c) {
      const float* row = panel + c * kPanelKeys + first;
      ATTEND_UNROLL for (int r = 0; r < R; ++r) {
        const float factor = x[r * x_stride + c];
        ATTEND_UNROLL for (int v = 0; v < kVectors; ++v) {
#pragma omp simd
          for (int l = 0; l < W; ++l) sum[r][v][l] = __builtin_fmaf(factor, row[v * W + l], sum[r][v][l]);
        }
      }
    }
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < kVectors; ++v) std::copy_n(sum[r][v], W, s + r * stride + first + v * W);
  }
}

template <int W>
ATTEND_INLINE void dots(const float* x, int64_t x_stride, int64_t rows, int64_t d, const float* panel, float* s,
                        int64_t s_stride) {
  int64_t r = 0;
  for (; W == 16 && r + 6 <= rows; r += 6)
    dots_block<W, 6>(x + r * x_stride, x_stride, d, panel, s + r * s_stride, s_stride);
  for (; r + 2 <= rows; r += 2) dots_block<W, 2>(x + r * x_stride, x_stride, d, panel, s + r * s_stride, s_stride);
  for (; r < rows; ++r) dots_block<W, 1>(x + r * x_stride, x_stride, d, panel, s + r * s_stride, s_stride);
}

// R rows against N vectors of W columns of the values. With kFinite only values that no row weighs are left out, which is
// right if all sums come out finite: those do not change by 0 times a finite value. Gives whether they are.
template <int W, int N, int R, bool kFinite>
ATTEND_INLINE bool sum_columns(const float* w, int64_t w_stride, int64_t keys, const float* v, int64_t v_stride,
                               float* out, int64_t out_stride) {
  float sum[R][N][W];
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < N; ++i) std::copy_n(out + r * out_stride + i * W, W, sum[r][i]);
  for (int64_t j = 0; j < keys; ++j) {
    const float* row = v + j * v_stride;
    if constexpr (kFinite) {
      uint32_t any = 0;
      ATTEND_UNROLL for (int r = 0; r < R; ++r) any |= std::bit_cast<uint32_t>(w[r * w_stride + j]);
      if (any << 1 == 0) continue;
    }
    ATTEND_UNROLL for (int r = 0; r < R; ++r) {
      const float weight = w[r * w_stride + j];
      if (!kFinite && weight == 0) continue;
      ATTEND_UNROLL for (int i = 0; i < N; ++i) {
#pragma omp simd
        for (int l = 0; l < W; ++l) sum[r][i][l] = __builtin_fmaf(weight, row[i * W + l], sum[r][i][l]);
      }
    }
  }
  if constexpr (kFinite) {
    float probe[W] = {};
    ATTEND_UNROLL for (int r = 0; r < R; ++r) {
      ATTEND_UNROLL for (int i = 0; i < N; ++i) {
#pragma omp simd
        for (int l = 0; l < W; ++l) probe[l] = __builtin_fmaf(sum[r][i][l], 0.0f, probe[l]);
      }
    }
    for (int l = 0; l < W; ++l)
      if (probe[l] != 0) return false;
  }
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < N; ++i)
      // A zero has no sign: 0 times a value may have changed it.
      for (int l = 0; l < W; ++l) out[r * out_stride + i * W + l] = sum[r][i][l] + 0.0f;
  return true;
}

template <int W, int N, int R>
ATTEND_INLINE void add_columns(const float* w, int64_t w_stride, int64_t keys, const float* v, int64_t v_stride,
                               float* out, int64_t out_stride) {
  if constexpr (R > 1)
    if (sum_columns<W, N, R, true>(w, w_stride, keys, v, v_stride, out, out_stride)) return;
  sum_columns<W, N, R, false>(w, w_stride, keys, v, v_stride, out, out_stride);
}

template <int W, int R>
ATTEND_INLINE void add_some_rows(const float* w, int64_t w_stride, int64_t keys, const float* v, int64_t v_stride,
                                 int64_t width, float* out, int64_t out_stride) {
  int64_t c = 0;
  for (; c + 64 <= width; c += 64) add_columns<W, 64 / W, R>(w, w_stride, keys, v + c, v_stride, out + c, out_stride);
  for (; c + 16 <= width; c += 16) add_columns<W, 16 / W, R>(w, w_stride, keys, v + c, v_stride, out + c, out_stride);
  for (; c < width; ++c) add_columns<1, 1, R>(w, w_stride, keys, v + c, v_stride, out + c, out_stride);
}

template <int W>
ATTEND_INLINE void add_rows(const float* w, int64_t w_stride, int64_t rows, int64_t keys, const float* v,
                            int64_t v_stride, int64_t width, float* out, int64_t out_stride) {
  int64_t r = 0;
  for (; W == 16 && r + 4 <= rows; r += 4)  // wide vectors have 32 registers
    add_some_rows<W, 4>(w + r * w_stride, w_stride, keys, v, v_stride, width, out + r * out_stride, out_stride);
  for (; r < rows; ++r)
    add_some_rows<W, 1>(w + r * w_stride, w_stride, keys, v, v_stride, width, out + r * out_stride, out_stride);
}

ATTEND_INLINE float exponentials(float* s, int64_t n, float* largest) {
  float top[kLanes], sum[kLanes] = {};
  std::fill_n(top, kLanes, kHidden);
  const int64_t whole = n / kLanes * kLanes;
  for (int64_t j = 0; j < whole; j += kLanes) {
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) top[l] = s[j + l] > top[l] ? s[j + l] : top[l];
  }
  for (int64_t j = whole; j < n; ++j) top[j - whole] = std::max(top[j - whole], s[j]);
  const float most = *std::max_element(top, top + kLanes);
  *largest = most;
  const float offset = most == kHidden ? 0.0f : most;
  for (int64_t j = 0; j < whole; j += kLanes) {
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) {
      s[j + l] = hook_exp(s[j + l] - offset);
      sum[l] += s[j + l];
    }
  }
  for (int64_t j = whole; j < n; ++j) {
    s[j] = hook_exp(s[j] - offset);
    sum[j - whole] += s[j];
  }
  for (int half = kLanes / 2; half; half /= 2)
    for (int l = 0; l < half; ++l) sum[l] += sum[l + half];
  return sum[0];
}

// The same code under each instruction set's flags, with vectors of W floats.
#define ATTEND_DENSE(SET, TARGET, W)                                                                              \
  TARGET void pack_##SET(DType type, const void* x, int64_t stride, int64_t keys, int64_t d, float* panel) {      \
    pack(type, x, stride, keys, d, panel);                                                                        \
  }                                                                                                               \
  TARGET void widen_##SET(DType type, const void* x, int64_t stride, int64_t rows, int64_t width, float* out,     \
                          int64_t to) {                                                                           \
    widen(type, x, stride, rows, width, out, to);                                                                 \
  }                                                                                                               \
  TARGET void pack_run_##SET(const RowRun& x, int64_t keys, int64_t d, float* panel) {                            \
    pack_run(x, keys, d, panel);                                                                                  \
  }                                                                                                               \
  TARGET void widen_run_##SET(const RowRun& x, int64_t rows, int64_t width, float* out, int64_t to) {             \
    widen_run(x, rows, width, out, to);                                                                           \
  }                                                                                                               \
  TARGET void dots_##SET(const float* x, int64_t x_stride, int64_t rows, int64_t d, const float* panel, float* s, \
                         int64_t s_stride) {                                                                      \
    dots<W>(x, x_stride, rows, d, panel, s, s_stride);                                                            \
  }                                                                                                               \
  TARGET void add_rows_##SET(const float* w, int64_t w_stride, int64_t rows, int64_t keys, const float* v,        \
                             int64_t v_stride, int64_t width, float* out, int64_t out_stride) {                   \
    add_rows<W>(w, w_stride, rows, keys, v, v_stride, width, out, out_stride);                                    \
  }                                                                                                               \
  TARGET float exponentials_##SET(float* s, int64_t n, float* largest) {                                          \
    return exponentials(s, n, largest);                                                                           \
  }                                                                                                               \
  constexpr DenseKernels kDense_##SET = {pack_##SET, widen_##SET,    pack_run_##SET,    widen_run_##SET,          \
                                         dots_##SET, add_rows_##SET, exponentials_##SET};

#if defined(__x86_64__)
ATTEND_DENSE(avx2, ATTEND_TARGET_AVX2, 8)
ATTEND_DENSE(avx512, ATTEND_TARGET_AVX512, 16)
#elif defined(__aarch64__)
ATTEND_DENSE(neon, , 4)
#endif

}  // namespace

const DenseKernels& dense_kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx2) return kDense_avx2;
  if (has_avx512(isa)) return kDense_avx512;
#elif defined(__aarch64__)
  if (has_neon(isa)) return kDense_neon;
#endif
  throw Error(ErrorKind::kUnsupported, "simd", "instruction set", name_of(isa), "has no dense kernels yet");
}

}  // namespace attend
