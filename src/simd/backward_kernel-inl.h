// The body of the backward kernels (see attend/simd/backward.h), included once per instruction set after HWY_TARGET is
// set.
#include <algorithm>
#include <bit>

#include "attend/simd/backward.h"
#include "hwy/highway.h"
#include "simd/backward_layout.h"

HWY_BEFORE_NAMESPACE();
#include "simd/math-inl.h"
#include "simd/micro-inl.h"
#include "simd/weights-inl.h"

namespace attend {
namespace HWY_NAMESPACE {

using backward_layout::Layout;
inline constexpr int kGroupRows = 6;
inline constexpr int64_t kStride = kBackwardStride;
inline constexpr int kPanelCols = kVecs * static_cast<int>(kLanes);

// out[r, 0..kCols lanes) += sum_i p[i, r] x[i, ..], ascending i: the transpose of add_values.
template <int kRows, int kCols>
HWY_INLINE void add_transposed(const float* HWY_RESTRICT p, const float* HWY_RESTRICT x, int64_t x_stride,
                               int64_t count, float* HWY_RESTRICT out, int64_t out_stride) {
  Sums<kRows, kCols> sums;
  sums.load(out, out_stride);
  for (int64_t i = 0; i < count; ++i) {
    Vec b[kCols];
#pragma GCC unroll 8
    for (int v = 0; v < kCols; ++v) b[v] = hn::LoadU(F32(), x + i * x_stride + v * kLanes);
    sums.add(p + i * kStride, 1, b);
  }
  sums.store(out, out_stride);
}

// f(column, std::integral_constant<int, vectors>) over `width` floats, a multiple of 16.
template <class F>
HWY_INLINE void each_column_block(int64_t width, F f) {
  int64_t c = 0;
  for (; c + kPanelCols <= width; c += kPanelCols) f(c, std::integral_constant<int, kVecs>());
  if constexpr (kVecs == 4)
    if (c + 2 * kLanes <= width) f(c, std::integral_constant<int, 2>()), c += 2 * kLanes;
  for (; c < width; c += kLanes) f(c, std::integral_constant<int, 1>());
}

class Backward {
 public:
  // `prepares`: the job has no rows yet.
  Backward(const BackwardJob& job, bool prepares)
      : job_(job),
        split_(job.split),
        rows_(job.split.tokens),
        cols_(job.split.cols),
        layout_(backward_layout::layout(job.split.d, job.split.dv)),
        d_padded_(padded_dv(job.split.d)),
        dv_padded_(padded_dv(job.split.dv)),
        positions_(reinterpret_cast<int32_t*>(job.scratch + layout_.positions)),
        weights_(at(layout_.weights)),
        gradients_(at(layout_.gradients)),
        slopes_(at(layout_.slopes)),
        finite_(job.finite && !prepares && rows_are_finite()),
        row_weights_(split_, positions_, !finite_ || job.weight) {
    split_.given_max = job.lse;
    split_.weight = nullptr;
    split_.max = at(layout_.sums);
    split_.sum = split_.max + kBackwardRows;
  }

  bool prepare() const {
    std::fill_n(at(layout_.dk), kBackwardPositions * d_padded_, 0.0f);
    std::fill_n(at(layout_.dv), kBackwardPositions * dv_padded_, 0.0f);
    for (const KeyRun& run : split_.runs) {
      const int64_t from = std::max(run.first_slot, split_.first_slot);
      const int64_t count = std::min(run.first_slot + run.count, split_.first_slot + cols_) - from;
      if (count <= 0) continue;
      copy(run.k_type, run.k, run.k_stride, from - run.first_slot, count, split_.d,
           at(layout_.keys) + (from - split_.first_slot) * d_padded_);
      copy(run.v_type, run.v, run.v_stride, from - run.first_slot, count, split_.dv,
           at(layout_.values) + (from - split_.first_slot) * dv_padded_);
    }
    std::fill_n(at(layout_.keys) + cols_ * d_padded_, (kBackwardPositions - cols_) * d_padded_, 0.0f);
    std::fill_n(at(layout_.values) + cols_ * dv_padded_, (kBackwardPositions - cols_) * dv_padded_, 0.0f);
    for (int64_t panel = 0; panel < kBackwardPositions / kPanelCols; ++panel) {
      pack_keys(at(layout_.keys) + panel * kPanelCols * d_padded_, d_padded_, kPanelCols, split_.d,
                at(layout_.k_panels) + panel * kPanelCols * split_.d, kPanelCols);
      pack_keys(at(layout_.values) + panel * kPanelCols * dv_padded_, dv_padded_, kPanelCols, dv_padded_,
                at(layout_.v_panels) + panel * kPanelCols * dv_padded_, kPanelCols);
    }
    return finite(at(layout_.keys), kBackwardPositions * d_padded_) &&
           finite(at(layout_.values), kBackwardPositions * dv_padded_);
  }

  void block() {
    for (int c = 0; c < kBackwardPositions; ++c) {
      const int j = std::min(c, cols_ - 1);
      positions_[c] = split_.k_position ? split_.k_position[j] : static_cast<int32_t>(split_.first_position + j);
    }
    Seen all;
    for (int g = 0; g < group_count(); ++g) {
      Seen seen;
      for (int r = g * kGroupRows; r < group_end(g); ++r) seen.add(row_weights_.visible(r), row_weights_.mask(r));
      all.add(seen);
      groups_[g] = seen.spans();
    }
    all_ = all.spans();
    multiply(split_.q, split_.d, at(layout_.k_panels), weights_);
    if (split_.hook) {
      for (int r = 0; r < rows_; ++r) std::copy_n(row(weights_, r), kBackwardPositions, row(slopes_, r));
      run(*job_.score_slope, slopes_);
      run(*split_.hook, weights_);
    }
    for (int r = 0; r < rows_; ++r) {
      if (split_.softcap != 0) cap_slope(r);
      row_weights_.weigh(r, row(weights_, r), groups_[r / kGroupRows]);
    }
    if (job_.d_out) {
      multiply(job_.d_out, dv_padded_, at(layout_.v_panels), gradients_);
    } else {
      for (int r = 0; r < rows_; ++r) std::fill_n(row(gradients_, r), kStride, 0.0f);
    }
    if (job_.weight) run(*job_.weight, gradients_);
    const bool sloped = split_.hook || split_.softcap != 0;
    for (int r = 0; r < rows_; ++r) score_gradients(r, sloped);
    if (job_.weight) weigh_again();
    const float* dots = sloped ? slopes_ : gradients_;
    for (int r = 0; r < rows_; ++r) std::fill_n(job_.dq + r * d_padded_, d_padded_, 0.0f);
    if (finite_) {
      add_to_queries(dots);
      add_to_keys(dots, split_.q, split_.d, d_padded_, at(layout_.dk));
      if (job_.d_out) add_to_keys(weights_, job_.d_out, dv_padded_, dv_padded_, at(layout_.dv));
    } else {
      add_pair_by_pair(dots);
    }
    if (job_.d_score) *job_.d_score = gradients_;
  }

 private:
  float* at(int64_t offset) const { return reinterpret_cast<float*>(job_.scratch + offset); }
  static float* row(float* strip, int r) { return strip + r * kStride; }
  int group_count() const { return (rows_ + kGroupRows - 1) / kGroupRows; }
  int group_end(int g) const { return std::min(rows_, (g + 1) * kGroupRows); }

  static void copy(DType type, const void* base, int64_t stride, int64_t first, int64_t count, int64_t width,
                   float* to) {
    auto rows = [&](const auto* p) { pack_values(p + first * stride, stride, count, width, padded_dv(width), to); };
    if (type == DType::kF32) return rows(static_cast<const float*>(base));
    if (type == DType::kF16) return rows(static_cast<const F16*>(base));
    rows(static_cast<const BF16*>(base));
  }

  static bool finite(const float* x, int64_t count) {
    const F32 d;
    Vec sum = hn::Zero(d);  // x - x is 0, or NaN for what is not finite
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      const Vec v = hn::LoadU(d, x + i);
      sum = hn::Add(sum, hn::Sub(v, v));
    }
    float rest = 0;
    for (; i < count; ++i) rest += x[i] - x[i];
    return rest == 0 && hn::AllTrue(d, hn::Eq(sum, hn::Zero(d)));
  }
  bool rows_are_finite() const {
    return finite(split_.q, int64_t{rows_} * split_.d) && finite(job_.delta, rows_) &&
           (!job_.d_out || finite(job_.d_out, rows_ * dv_padded_));
  }

  // strip[r, j] = x[r] . y[j] where a group sees j.
  void multiply(const float* x, int64_t width, const float* panels, float* strip) const {
    for (int begin = 0; begin < cols_; begin += kPanelCols)
      for (int g = 0; g < group_count(); ++g) {
        if (!groups_[g].touches(begin, begin + kPanelCols)) continue;
        const int r = g * kGroupRows;
        for_rows(group_end(g) - r, [&](auto rows) {
          score_panel<rows(), kVecs>(x + r * width, width, panels + begin * width, kVecs * kLanes,
                                     row(strip, r) + begin, kStride);
        });
      }
  }

  void run(const Hook& hook, float* strip) const {
    for (const Span& span : all_) {
      Tile tile{strip + span.begin,
                kStride,
                rows_,
                span.end - span.begin,
                split_.batch,
                split_.first_head,
                split_.q_position,
                positions_ + span.begin};
      hook.run[kIsa](hook.self, tile);
    }
  }

  // slope <- (hook's slope or 1) * (1 - tanh^2(s / cap)), s before the cap.
  void cap_slope(int r) const {
    const F32 d;
    const Vec inverse = hn::Set(d, 1.0f / split_.softcap), one = hn::Set(d, 1.0f);
    for (int c = 0; c < kBackwardPositions; c += static_cast<int>(kLanes)) {
      const Vec t = tanh_of(hn::Mul(hn::LoadU(d, row(weights_, r) + c), inverse));
      const Vec slope = hn::NegMulAdd(t, t, one);
      float* to = row(slopes_, r) + c;
      hn::StoreU(split_.hook ? hn::Mul(slope, hn::LoadU(d, to)) : slope, d, to);
    }
  }

  // ds = |w| g - w delta, 0 for hidden keys and where the group sees nothing; also weights there become 0.
  void score_gradients(int r, bool sloped) const {
    const F32 d;
    float *w = row(weights_, r), *g = row(gradients_, r), *slope = row(slopes_, r);
    const Vec delta = hn::Set(d, job_.delta[r]);
    const bool some_hidden = !finite_ || job_.weight || split_.hook;
    int done = 0;
    auto clear = [&](int end) {
      for (float* x : {w, g, slope}) std::fill(x + done, x + std::max(done, end), 0.0f);
    };
    for (const Span& span : groups_[r / kGroupRows]) {
      const int begin = span.begin / 16 * 16, end = (span.end + 15) / 16 * 16;
      clear(begin);
      for (int c = begin; c < end; c += static_cast<int>(kLanes)) {
        const Vec x = hn::LoadU(d, w + c);
        Vec ds = hn::NegMulAdd(x, delta, hn::Mul(hn::Abs(x), hn::LoadU(d, g + c)));
        Vec dot = sloped ? hn::Mul(ds, hn::LoadU(d, slope + c)) : ds;
        if (some_hidden) {
          const auto hidden = RowWeights::negative_zero(x);
          ds = hn::IfThenZeroElse(hidden, ds), dot = hn::IfThenZeroElse(hidden, dot);
        }
        hn::StoreU(ds, d, g + c);
        if (sloped) hn::StoreU(dot, d, slope + c);
      }
      done = end;
    }
    clear(kBackwardPositions);
  }

  // Weights as they meet the values: through the weight hook, hidden ones marked as before.
  void weigh_again() {
    for (int r = 0; r < rows_; ++r)
      row_weights_.run_on_weights(*job_.weight, r, row(weights_, r), groups_[r / kGroupRows]);
  }

  void add_to_queries(const float* dots) const {
    for (int g = 0; g < group_count(); ++g) {
      const int r = g * kGroupRows;
      for (const Span& span : groups_[g])
        each_column_block(d_padded_, [&](int64_t c, auto vecs) {
          for_rows(group_end(g) - r, [&](auto rows) {
            add_values<rows(), vecs(), false>(dots + r * kStride + span.begin, kStride,
                                              at(layout_.keys) + span.begin * d_padded_ + c, d_padded_,
                                              span.end - span.begin, job_.dq + r * d_padded_ + c, d_padded_);
          });
        });
    }
  }

  // to[j] += sum_r p[r, j] x[r] over the rows that see j or a neighbour of it. Rows of x may be `width` wide, not
  // padded: what lies behind the last is scratch memory of the caller, and lands in the padding of `to`.
  void add_to_keys(const float* p, const float* x, int64_t width, int64_t padded, float* to) const {
    for (int j = 0; j < cols_; j += kGroupRows) {
      int first = -1, last = 0;
      for (int g = 0; g < group_count(); ++g) {
        if (!groups_[g].touches(j, j + kGroupRows)) continue;
        if (first < 0) first = g * kGroupRows;
        last = group_end(g);
      }
      if (first < 0) continue;
      const int keys = std::min<int>(kGroupRows, static_cast<int>(kBackwardPositions) - j);
      each_column_block(padded, [&](int64_t c, auto vecs) {
        for_rows(keys, [&](auto rows) {
          add_transposed<rows(), vecs()>(p + first * kStride + j, x + first * width + c, width, last - first,
                                         to + j * padded + c, padded);
        });
      });
    }
  }

  // Where something is not finite, only pairs that see each other may meet.
  void add_pair_by_pair(const float* dots) const {
    const float* keys = at(layout_.keys);
    float *dk = at(layout_.dk), *dv = at(layout_.dv);
    for (int r = 0; r < rows_; ++r) {
      const ColumnRanges& v = row_weights_.visible(r);
      for (const Span& range : {Span{v.a0, v.a1}, Span{v.b0, v.b1}})
        for (int j = range.begin; j < range.end; ++j) {
          const float weight = weights_[r * kStride + j], dot = dots[r * kStride + j];
          if (std::bit_cast<uint32_t>(weight) == 0x80000000u || !groups_[r / kGroupRows].touches(j, j + 1)) continue;
          for (int64_t c = 0; c < split_.d; ++c) {
            job_.dq[r * d_padded_ + c] += dot * keys[j * d_padded_ + c];
            dk[j * d_padded_ + c] += dot * split_.q[r * split_.d + c];
          }
          for (int64_t c = 0; job_.d_out && c < split_.dv; ++c)
            dv[j * dv_padded_ + c] += weight * job_.d_out[r * dv_padded_ + c];
        }
    }
  }

  const BackwardJob& job_;
  SplitJob split_;
  int rows_, cols_;
  Layout layout_;
  int64_t d_padded_, dv_padded_;
  int32_t* positions_;
  float *weights_, *gradients_, *slopes_;
  bool finite_;  // all that meets in this block
  RowWeights row_weights_;
  Spans groups_[kBackwardRows / kGroupRows], all_;
};

bool backward_prepare(const BackwardJob& job) noexcept {
  return Backward(job, true).prepare();
}
void backward_block(const BackwardJob& job) noexcept {
  Backward(job, false).block();
}

void scale_rows(const float* from, int64_t from_stride, float factor, float* to, int64_t to_stride, int64_t rows,
                int64_t width, bool add) noexcept {
  const F32 d;
  const Vec f = hn::Set(d, factor);
  for (int64_t r = 0; r < rows; ++r, from += from_stride, to += to_stride) {
    int64_t c = 0;
    for (; c + kLanes <= width; c += kLanes) {
      const Vec x = hn::Mul(f, hn::LoadU(d, from + c));
      hn::StoreU(add ? hn::Add(hn::LoadU(d, to + c), x) : x, d, to + c);
    }
    for (; c < width; ++c) to[c] = (add ? to[c] : 0) + factor * from[c];
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace attend
HWY_AFTER_NAMESPACE();
