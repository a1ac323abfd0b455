// The body of attend_split (see attend/simd/split.h), included once per instruction set after HWY_TARGET is set.
#include <algorithm>
#include <bit>
#include <type_traits>

#include "attend/simd/split.h"
#include "hwy/highway.h"
#include "simd/split_layout.h"

HWY_BEFORE_NAMESPACE();
#include "simd/math-inl.h"
#include "simd/micro-inl.h"
#include "simd/partial-inl.h"
#include "simd/weights-inl.h"

namespace attend {
namespace HWY_NAMESPACE {

using split_layout::kBlockRows;
using split_layout::kGroupRows;

// From here on rows share f32 copies of the values; fewer read them in place.
inline constexpr int kPackValuesRows = 13;

class Split {
 public:
  explicit Split(const SplitJob& job)
      : job_(job),
        rows_(job.heads * job.tokens),
        layout_(split_layout::layout(job.d, job.dv)),
        strip_(reinterpret_cast<float*>(job.scratch + layout_.strip)),
        panels_(reinterpret_cast<float*>(job.scratch + layout_.panels)),
        values_(reinterpret_cast<float*>(job.scratch + layout_.values)),
        positions_(reinterpret_cast<int32_t*>(job.scratch + layout_.positions)),
        padded_(padded_dv(job.dv)),
        weights_(job, positions_) {
    one_block_ = rows_ <= kBlockRows;
    // A panel that is packed and read at once has to fit the first-level cache beside keys and queries: 16 KB of it.
    const int vecs = job.d <= 64 || (job.d <= 128 && !one_block_) ? kVecs : 2;
    panel_cols_ = vecs * static_cast<int>(kLanes);
    pack_values_ = rows_ >= kPackValuesRows ? job.v_type != DType::kF32 || job.dv % 16 != 0 : job.dv % 16 != 0;
    if (job.hook || job.weight || job.final_hook)
      for (int c = 0; c < kStripCols; ++c) {
        const int j = std::min(c, job.cols - 1);
        positions_[c] = job.k_position ? job.k_position[j] : static_cast<int32_t>(job.first_position + j);
      }
  }

  void run() {
    for (int r = 0; r < rows_; r += kBlockRows) block(r, std::min(kBlockRows, rows_ - r));
  }

 private:
  float* strip_row(int r) { return strip_ + static_cast<int64_t>(r) * kStripCols; }

  void block(int first, int count) {
    Spans groups[kBlockRows / kGroupRows];
    Seen all;
    const int group_count = (count + kGroupRows - 1) / kGroupRows;
    for (int g = 0; g < group_count; ++g) {
      Seen seen;
      for (int r = g * kGroupRows; r < std::min(count, (g + 1) * kGroupRows); ++r)
        seen.add(weights_.visible(first + r), weights_.mask(first + r));
      all.add(seen);
      groups[g] = seen.spans();
    }
    const Spans spans = all.spans();
    for (int r = 0; r < count; ++r) std::fill_n(acc_row(first + r), padded_, 0.0f);
    if (spans.empty()) {
      std::fill_n(job_.max + first, count, kNegInf);
      std::fill_n(job_.sum + first, count, 0.0f);
      return;
    }
    scores(first, count, groups, group_count, spans);
    if (job_.hook) run_hook(first, count, spans);
    for (int r = 0; r < count; ++r) weights_.weigh(first + r, strip_row(r), groups[r / kGroupRows]);
    for (int g = 0; g < group_count && !job_.sums_only; ++g)
      weighted_values(first + g * kGroupRows, std::min(kGroupRows, count - g * kGroupRows), strip_row(g * kGroupRows),
                      groups[g]);
  }

  float* acc_row(int row) { return job_.acc + row * job_.acc_stride; }

  // Calls f(pointer to run rows, stride, first column, count) for the runs under columns [begin, end).
  template <class F>
  void each_run(int begin, int end, F f) const {
    for (const KeyRun& run : job_.runs) {
      const int64_t from = std::max<int64_t>(run.first_slot, job_.first_slot + begin);
      const int64_t to = std::min<int64_t>(run.first_slot + run.count, job_.first_slot + end);
      if (from >= to) continue;
      f(run, from - run.first_slot, static_cast<int>(from - job_.first_slot), static_cast<int>(to - from));
    }
  }

  template <class F>
  static void typed(DType type, const void* base, F f) {
    if (type == DType::kF32) return f(static_cast<const float*>(base));
    if (type == DType::kF16) return f(static_cast<const F16*>(base));
    f(static_cast<const BF16*>(base));
  }

  const float* packed_panel(int panel) {
    float* to = panels_ + (one_block_ ? 0 : panel * job_.d * panel_cols_);
    if (!one_block_ && (packed_panels_ >> panel & 1)) return to;
    packed_panels_ |= uint64_t{1} << panel;
    const int begin = panel * panel_cols_, end = begin + panel_cols_;
    if (end > job_.cols) std::fill_n(to, job_.d * panel_cols_, 0.0f);
    each_run(begin, std::min(end, job_.cols), [&](const KeyRun& run, int64_t row, int col, int count) {
      typed(job_.k_type, run.k, [&](const auto* k) {
        pack_keys(k + row * run.k_stride, run.k_stride, count, job_.d, to + (col - begin), panel_cols_);
      });
    });
    return to;
  }

  void scores(int first, int count, const Spans* groups, int group_count, const Spans& all) {
    for (int panel = 0; panel * panel_cols_ < kStripCols; ++panel) {
      const int begin = panel * panel_cols_, end = begin + panel_cols_;
      if (!all.touches(begin, end)) continue;
      const float* packed = packed_panel(panel);
      for (int g = 0; g < group_count; ++g) {
        if (!groups[g].touches(begin, end)) continue;
        const int r = g * kGroupRows;
        const float* q = job_.q + (first + r) * job_.d;
        score_rows(std::min(kGroupRows, count - r), q, packed, strip_row(r) + begin);
      }
    }
  }

  void score_rows(int rows, const float* q, const float* panel, float* s) const {
    if (panel_cols_ == kVecs * kLanes) return score_rows<kVecs>(rows, q, panel, s);
    score_rows<2>(rows, q, panel, s);
  }

  template <int kCols>
  void score_rows(int rows, const float* q, const float* panel, float* s) const {
    switch (rows) {
      case 6:
        return score_panel<6, kCols>(q, job_.d, panel, s, kStripCols);
      case 5:
        return score_panel<5, kCols>(q, job_.d, panel, s, kStripCols);
      case 4:
        return score_panel<4, kCols>(q, job_.d, panel, s, kStripCols);
      case 3:
        return score_panel<3, kCols>(q, job_.d, panel, s, kStripCols);
      case 2:
        return score_panel<2, kCols>(q, job_.d, panel, s, kStripCols);
      default:
        return score_panel<1, kCols>(q, job_.d, panel, s, kStripCols);
    }
  }

  void run_hook(int first, int count, const Spans& all) {
    int32_t q_position[kBlockRows];
    for (int r = 0; r < count;) {
      const int head = (first + r) / job_.tokens;
      int n = 0;
      for (; r + n < count && (first + r + n) / job_.tokens == head; ++n)
        q_position[n] = job_.q_position[(first + r + n) % job_.tokens];
      for (const Span& span : all) {
        Tile tile{strip_row(r) + span.begin,
                  kStripCols,
                  n,
                  span.end - span.begin,
                  job_.batch,
                  job_.first_head + head,
                  q_position,
                  positions_ + span.begin};
        job_.hook->run[kIsa](job_.hook->self, tile);
      }
      r += n;
    }
  }

  void weighted_values(int first, int rows, const float* p, const Spans& seen) {
    for (const Span& span : seen) add_span(first, rows, p, span.begin, span.end);
    if (all_finite(first, rows)) return;
    // A value that is not finite must not reach rows that hide its key: add key by key what each row sees.
    for (int r = 0; r < rows; ++r) {
      std::fill_n(acc_row(first + r), padded_, 0.0f);
      const ColumnRanges& v = weights_.visible(first + r);
      const float* weights = p + static_cast<int64_t>(r) * kStripCols;
      for (const Span& range : {Span{v.a0, v.a1}, Span{v.b0, v.b1}})
        for (int c = range.begin; c < range.end; ++c)
          if (std::bit_cast<uint32_t>(weights[c]) != 0x80000000u) add_span(first + r, 1, weights, c, c + 1);
    }
  }

  bool all_finite(int first, int rows) {
    const F32 d;
    Vec sum = hn::Zero(d);  // x - x is 0, or NaN for what is not finite
    for (int r = 0; r < rows; ++r)
      for (int64_t c = 0; c < padded_; c += kLanes) {
        const Vec x = hn::LoadU(d, acc_row(first + r) + c);
        sum = hn::Add(sum, hn::Sub(x, x));
      }
    return hn::AllTrue(d, hn::Eq(sum, hn::Zero(d)));
  }

  // acc += p v over job columns [begin, end). `p` is row 0 of the strip.
  void add_span(int first, int rows, const float* p, int begin, int end) {
    if (pack_values_) {
      pack(begin, end);
      add_columns<false>(first, rows, p + begin, values_ + begin * padded_, padded_, end - begin);
      return;
    }
    each_run(begin, end, [&](const KeyRun& run, int64_t row, int col, int count) {
      typed(job_.v_type, run.v, [&](const auto* v) {
        add_columns<true>(first, rows, p + col, v + row * run.v_stride, run.v_stride, count);
      });
    });
  }

  void pack(int begin, int end) {
    constexpr int kChunk = 64;
    for (int chunk = begin / kChunk; chunk * kChunk < end; ++chunk) {
      if (packed_values_ >> chunk & 1) continue;
      packed_values_ |= 1u << chunk;
      each_run(chunk * kChunk, std::min(job_.cols, (chunk + 1) * kChunk),
               [&](const KeyRun& run, int64_t row, int col, int count) {
                 typed(job_.v_type, run.v, [&](const auto* v) {
                   pack_values(v + row * run.v_stride, run.v_stride, count, job_.dv, padded_, values_ + col * padded_);
                 });
               });
    }
  }

  template <bool kAhead, class T>
  void add_columns(int first, int rows, const float* p, const T* v, int64_t v_stride, int count) {
    int64_t c = 0;
    for (; c + kVecs * kLanes <= padded_; c += kVecs * kLanes)
      add_rows<kVecs, kAhead>(first, rows, p, v + c, v_stride, count, c);
    if constexpr (kVecs == 4)
      if (c + 2 * kLanes <= padded_) add_rows<2, kAhead>(first, rows, p, v + c, v_stride, count, c), c += 2 * kLanes;
    for (; c < padded_; c += kLanes) add_rows<1, kAhead>(first, rows, p, v + c, v_stride, count, c);
  }

  template <int kCols, bool kAhead, class T>
  void add_rows(int first, int rows, const float* p, const T* v, int64_t v_stride, int count, int64_t c) {
    float* out = acc_row(first) + c;
    const int64_t stride = job_.acc_stride;
    switch (rows) {
      case 6:
        return add_values<6, kCols, kAhead>(p, kStripCols, v, v_stride, count, out, stride);
      case 5:
        return add_values<5, kCols, kAhead>(p, kStripCols, v, v_stride, count, out, stride);
      case 4:
        return add_values<4, kCols, kAhead>(p, kStripCols, v, v_stride, count, out, stride);
      case 3:
        return add_values<3, kCols, kAhead>(p, kStripCols, v, v_stride, count, out, stride);
      case 2:
        return add_values<2, kCols, kAhead>(p, kStripCols, v, v_stride, count, out, stride);
      default:
        return add_values<1, kCols, kAhead>(p, kStripCols, v, v_stride, count, out, stride);
    }
  }

  const SplitJob& job_;
  int rows_;
  split_layout::Layout layout_;
  float *strip_, *panels_, *values_;
  int32_t* positions_;
  int64_t padded_;
  RowWeights weights_;
  bool one_block_ = false, pack_values_ = false;
  int panel_cols_ = 0;
  uint64_t packed_panels_ = 0;
  uint32_t packed_values_ = 0;
};

void attend_split(const SplitJob& job) noexcept {
  Split(job).run();
}

}  // namespace HWY_NAMESPACE
}  // namespace attend
HWY_AFTER_NAMESPACE();
