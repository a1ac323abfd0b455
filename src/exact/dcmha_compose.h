#pragma once
// Maps between heads, a block of columns at a time: what both passes of dcmha share.
#include <algorithm>

#include "attend/exact/dcmha.h"
#include "exact/rows.h"
#include "exact/run_under.h"

namespace attend::exact {

inline constexpr int64_t kMostRanks = 8;

// Throws Error(kArgument).
Problem check_dcmha(const DcmhaIn& in, const DcmhaOptions& options);

// One side's map between heads, with what belongs to keys turned so that keys are innermost.
class Composer {
 public:
  Composer(const Compose& c, int64_t heads, int64_t keys, int64_t batch)
      : c_(c), heads_(heads), ranks_(c.q1.shape[2]), stride_(padded_keys(keys)), keys_(keys) {
    turned_ = Buffer(std::max<int64_t>(1, batch * (2 * ranks_ + 1) * heads * stride_) * 4);
  }

  int64_t ranks() const { return ranks_; }
  // Of a rank and head by key: k1, or k2; and kd.
  const float* k1(int64_t b, int64_t r, int64_t h) const { return key(b, r, h); }
  const float* k2(int64_t b, int64_t r, int64_t h) const { return key(b, ranks_ + r, h); }

  // Rows (2 R + 1) * Hq of [Tk]: k1, k2, kd.
  void turn(int64_t b) {
    for (int64_t j = 0; j < keys_; ++j)
      for (int64_t row = 0; row <= 2 * ranks_; ++row) {
        const View& from = row < ranks_ ? c_.k1 : c_.k2;
        const float* x = row == 2 * ranks_ ? c_.kd.at<float>({b, j}) : from.at<float>({b, j, row % ranks_});
        for (int64_t h = 0; h < heads_; ++h) key(b, row, h)[j] = x[h];
      }
  }

  // In place: s[h * head_stride + j] over all heads, for query i and columns [0, n). `scratch`: Hq * 64.
  [[gnu::always_inline]] void run(int64_t b, int64_t i, float* s, int64_t head_stride, int64_t n,
                                  float* scratch) const {
    const float* qd = c_.qd.at<float>({b, i});
    for (int64_t first = 0; first < n; first += kPanelKeys) {
      const int columns = static_cast<int>(std::min<int64_t>(kPanelKeys, n - first));
      float by_query[kMostRanks][kPanelKeys] = {}, by_key[kMostRanks][kPanelKeys] = {};
      for (int64_t h = 0; h < heads_; ++h) {
        const float* from = s + h * head_stride + first;
        float* x = scratch + h * kPanelKeys;
        std::copy_n(from, columns, x);
        for (int64_t r = 0; r < ranks_; ++r) {
          const float factor = c_.q1.at<float>({b, i, r})[h];
          const float* k1 = key(b, r, h) + first;
          float *query_sum = by_query[r], *key_sum = by_key[r];
#pragma omp simd
          for (int j = 0; j < columns; ++j) {
            query_sum[j] = __builtin_fmaf(factor, x[j], query_sum[j]);
            key_sum[j] = __builtin_fmaf(k1[j], x[j], key_sum[j]);
          }
        }
      }
      for (int64_t h = 0; h < heads_; ++h) {
        float* to = s + h * head_stride + first;
        const float* x = scratch + h * kPanelKeys;
        const float *kd = key(b, 2 * ranks_, h) + first, own = qd[h];
        if (c_.w.data) {
          std::fill_n(to, columns, 0.0f);
          for (int64_t g = 0; g < heads_; ++g) {
            const float factor = c_.w.at<float>({g})[h];
            const float* y = scratch + g * kPanelKeys;
#pragma omp simd
            for (int j = 0; j < columns; ++j) to[j] = __builtin_fmaf(factor, y[j], to[j]);
          }
        }
#pragma omp simd
        for (int j = 0; j < columns; ++j) to[j] = __builtin_fmaf(x[j], own + kd[j], to[j]);
        for (int64_t r = 0; r < ranks_; ++r) {
          const float factor = c_.q2.at<float>({b, i, r})[h];
          const float *k2 = key(b, ranks_ + r, h) + first, *query_sum = by_query[r], *key_sum = by_key[r];
#pragma omp simd
          for (int j = 0; j < columns; ++j)
            to[j] = __builtin_fmaf(k2[j], key_sum[j], __builtin_fmaf(factor, query_sum[j], to[j]));
        }
      }
    }
  }

 private:
  float* key(int64_t b, int64_t row, int64_t h) const {
    return turned_.as<float>() + ((b * (2 * ranks_ + 1) + row) * heads_ + h) * stride_;
  }

  const Compose& c_;
  int64_t heads_, ranks_, stride_, keys_;
  Buffer turned_;
};

// The same under an instruction set.
struct ComposeRow {
  const Composer& composer;
  int64_t b, i;
  float* s;
  int64_t head_stride, n;
  float* scratch;

  [[gnu::always_inline]] inline void run() const { composer.run(b, i, s, head_stride, n, scratch); }
};

}  // namespace attend::exact
