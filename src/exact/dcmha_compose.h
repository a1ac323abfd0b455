#pragma once
// Maps between heads, and the rows of scores that they compose: what both passes of dcmha share.
#include <algorithm>
#include <vector>

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

  const Compose& factors() const { return c_; }
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

  // In place: s[h * head_stride + j] over all heads, for query i and some columns. `scratch`: Hq * 64.
  [[gnu::always_inline]] void run(int64_t b, int64_t i, float* s, int64_t head_stride, KeyRange of,
                                  float* scratch) const {
    const float *qd = c_.qd.at<float>({b, i}), *w = c_.w.as<float>();
    for (int64_t first = of.begin; first < of.end; first += kPanelKeys) {
      const int columns = static_cast<int>(std::min<int64_t>(kPanelKeys, of.end - first));
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
        if (w) {
          std::fill_n(to, columns, 0.0f);
          for (int64_t g = 0; g < heads_; ++g) {
            const float factor = w[g * c_.w.stride[0] + h * c_.w.stride[1]];
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

  Compose c_;
  int64_t heads_, ranks_, stride_, keys_;
  Buffer turned_;
};

// The same under an instruction set.
struct ComposeRow {
  const Composer& composer;
  int64_t b, i;
  float* s;
  int64_t head_stride;
  KeyRange columns;
  float* scratch;

  [[gnu::always_inline]] inline void run() const { composer.run(b, i, s, head_stride, columns, scratch); }
};

inline std::vector<PackedHead> packed_heads(const Problem& p, const DenseKernels& kernels, bool key_rows,
                                            Context& context) {
  std::vector<PackedHead> heads(p.keys.size());
  for (size_t h = 0; h < heads.size(); ++h) heads[h].reserve(p.keys[h].count(), p.d, p.dv, key_rows);
  parallel_for(context.threads, static_cast<int64_t>(heads.size()), [&](int64_t task, int) {
    heads[static_cast<size_t>(task)].load(kernels, p.keys[static_cast<size_t>(task)], 0);
  });
  return heads;
}

// A few queries of one batch entry, all heads: x [Hq, kRows, padded keys]. A query touches only the slots that it sees,
// one range without a window or a prefix, so that nothing of other keys, or of their factors, reaches it.
class ComposedRows {
 public:
  static constexpr int64_t kRows = 4;

  ComposedRows(const Problem& p, int64_t keys, Isa isa)
      : p_(p),
        isa_(isa),
        kernels_(dense_kernels(isa)),
        stride_(padded_keys(keys)),
        scratch_(p.heads * kPanelKeys * 4) {}

  // Queries [first, first + count) from now on.
  void start(int64_t b, int64_t first, int64_t count) {
    b_ = b, first_ = first, count_ = count, last_ = 0;
    for (int64_t r = 0; r < count; ++r) {
      seen_[r] = slots_seen(p_, keys_of(p_, b, 0), b, first + r).b;
      last_ = std::max(last_, seen_[r].end);
    }
  }
  KeyRange seen(int64_t r) const { return seen_[r]; }
  int64_t last() const { return last_; }  // one past the last slot that any of them sees
  int64_t stride() const { return stride_; }
  int64_t head_stride() const { return kRows * stride_; }
  int64_t size() const { return std::max<int64_t>(1, p_.heads * head_stride()); }
  float* at(float* x, int64_t h, int64_t r) const { return x + h * head_stride() + r * stride_; }

  // x = scale * from . panels(h), of all slots up to last(); rows [Hq, kRows, width] get scale * from.
  template <class Panels>
  void dots(const View& from, float scale, const Panels& panels, float* rows, float* x) const {
    const int64_t width = from.shape[3];
    for (int64_t h = 0; h < p_.heads; ++h) {
      float* const own = rows + h * kRows * width;
      for (int64_t r = 0; r < count_; ++r) {
        const float* row = from.at<float>({b_, h, first_ + r});
        for (int64_t c = 0; c < width; ++c) own[r * width + c] = row[c] * scale;
      }
      for (int64_t j = 0; j < last_; j += kPanelKeys)
        kernels_.dots(own, width, count_, width, panels(h) + j * width, at(x, h, 0) + j, stride_);
    }
  }

  void compose(const Composer& map, int64_t r, float* x) const {
    run_under(isa_, ComposeRow{map, b_, first_ + r, at(x, 0, r), head_stride(), seen_[r], scratch_.as<float>()});
  }

  // Scores before the map to weights.
  void weigh(const Composer& pre, int64_t r, float* s) const {
    compose(pre, r, s);
    const auto [begin, end] = seen_[r];
    for (int64_t h = 0; h < p_.heads; ++h) {
      float most, *const row = at(s, h, r);
      const float* bias = p_.bias.data ? p_.bias.at<float>({b_, h, first_ + r}) : nullptr;
      for (int64_t j = begin; bias && j < end; ++j) row[j] += bias[j * p_.bias.stride[3]];
      const float sum = kernels_.exponentials(row + begin, end - begin, &most);
      for (int64_t j = begin; j < end && sum != 0; ++j) row[j] /= sum;
    }
  }

  // 0 for what the query does not see, up to last().
  void clear_hidden(int64_t r, float* x) const {
    for (int64_t h = 0; h < p_.heads; ++h) {
      std::fill_n(at(x, h, r), seen_[r].begin, 0.0f);
      std::fill(at(x, h, r) + seen_[r].end, at(x, h, r) + last_, 0.0f);
    }
  }

 private:
  const Problem& p_;
  Isa isa_;
  const DenseKernels& kernels_;
  int64_t stride_, b_ = 0, first_ = 0, count_ = 0, last_ = 0;
  KeyRange seen_[kRows];
  Buffer scratch_;
};

}  // namespace attend::exact
