// The body of attend_split (see attend/simd/split.h), included once per instruction set after HWY_TARGET is set.
#include <algorithm>

#include "attend/simd/split.h"
#include "hwy/highway.h"
#include "simd/split_layout.h"

HWY_BEFORE_NAMESPACE();
#include "simd/math-inl.h"
#include "simd/micro-inl.h"
#include "simd/partial-inl.h"
#include "simd/quantised-inl.h"
#include "simd/weights-inl.h"
// What follows needs what precedes.
#include "simd/channels-inl.h"
#include "simd/job_keys-inl.h"
// What follows needs what precedes.
#include "simd/few_rows-inl.h"
// What follows needs what precedes.
#include "simd/scattered_rows-inl.h"
// What follows needs what precedes.
#include "simd/products_f32-inl.h"
#include "simd/quantiser-inl.h"
#include "simd/smoothing-inl.h"
// What follows needs what precedes.
#include "simd/products_quantised-inl.h"
#if ATTEND_BF16_DOT
#include "simd/passing_weights-inl.h"
#include "simd/products_bf16-inl.h"
#include "simd/products_int8-inl.h"
// What follows needs what precedes.
#include "simd/products_amx-inl.h"
// What follows needs what precedes.
#include "simd/products_amx_int8-inl.h"
#endif

namespace attend {
namespace HWY_NAMESPACE {

// `Products` multiplies queries with keys and weights with values, in the arithmetic that the job asks for.
template <class Products>
class Split {
 public:
  explicit Split(const SplitJob& job)
      : job_(job),
        rows_(job.heads * job.tokens),
        strip_(reinterpret_cast<float*>(job.scratch + split_layout::layout(job.d, job.dv).strip)),
        positions_(reinterpret_cast<int32_t*>(job.scratch + split_layout::layout(job.d, job.dv).positions)),
        padded_(padded_dv(job.dv)),
        weights_(job, positions_),
        products_(job, rows_) {
#if ATTEND_BF16_DOT
    if constexpr (Products::kShortWeights) {
      constexpr bool kLeaves = requires {
        products_.leave_scale();
      };
      const bool leaves = kLeaves && weights_.plain() && job.score_scale > 0;
      if (weights_.by_softmax()) weights_.shorten(leaves ? job.score_scale : 1.0f);
      if constexpr (kLeaves)
        if (leaves) products_.leave_scale();
    }
#endif
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
  static constexpr int kBlockRows = Products::kBlockRows, kGroupRows = Products::kGroupRows;
  // Whether weights can be made of scores while these pass by.
  static constexpr bool kPasses = requires(Products & products) {
    products.pass_weights();
  };

  float* strip_row(int r) {
    return strip_ + static_cast<int64_t>(r) * kStripStride;
  }

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
    if (Products::kOverwrites && !spans.empty() && !job_.sums_only) {
      // acc comes whole.
    } else if (job_.acc_stride == padded_) {
      std::fill_n(acc_row(first), count * padded_, 0.0f);
    } else {
      for (int r = 0; r < count; ++r) std::fill_n(acc_row(first + r), padded_, 0.0f);
    }
    if (spans.empty()) {
      std::fill_n(job_.max + first, count, kNegInf);
      std::fill_n(job_.sum + first, count, 0.0f);
      return;
    }
    products_.take_block(first, count, strip_);
    const bool passed = pass(first, count, spans);
    if (!passed) weigh_strip(first, count, groups, spans);
    for (int r = 0; r < count && !job_.sums_only; r += kGroupRows) {
      const int rows = std::min(kGroupRows, count - r);
      const Spans& seen = groups[r / kGroupRows];
      products_.take_weights(r, rows, seen);
      products_.add(r, rows, seen);
      if (all_finite(first + r, rows)) continue;
      if (passed) {  // so that weights tell what hooks hide
        products_.take_block(first, count, strip_);
        weigh_strip(first, count, groups, spans);
        products_.take_weights(r, rows, seen);
      }
      add_seen(first, r, rows);
    }
  }

  void weigh_strip(int first, int count, const Spans* groups, const Spans& all) {
    scores(count, groups, all);
    if (job_.hook) run_hook(first, count, strip_, kStripStride, all);
    for (int r = 0; r < count; ++r) weights_.weigh(first + r, strip_row(r), groups[r / kGroupRows]);
  }

  // Scores and weights at once, if they allow it.
  bool pass([[maybe_unused]] int first, [[maybe_unused]] int count, [[maybe_unused]] const Spans& spans) {
#if ATTEND_BF16_DOT
    if constexpr (kPasses) {
      static_assert(kGroupRows == kBlockRows);
      if (!weights_.may_pass()) return false;
      using Passing = PassingWeights<Products>;
      Passing passing(weights_, products_, first, count, products_.steps(), strip_);
      for (int panel = 0; panel * Passing::kCols < kStripCols; ++panel) {
        const int begin = panel * Passing::kCols;
        const Span seen = spans.within(begin, begin + Passing::kCols);
        if (seen.empty()) continue;
        products_.take_panel(panel);
        products_.scores_to(passing.next(), Passing::kStride, count, seen.begin - begin, seen.end - begin,
                            [&]() HWY_ATTR { passing.some(); });
        if (job_.hook) {
          Spans chunk;
          chunk.append(seen);
          run_hook(first, count, passing.next() - begin, Passing::kStride, chunk);
        }
        passing.take(begin);
      }
      uint64_t again = passing.finish();
      if (again != 0) {
        scores(count, &spans, spans);
        if (job_.hook) run_hook(first, count, strip_, kStripStride, spans);
      }
      for (; again != 0; again &= again - 1) {
        const int r = __builtin_ctzll(again);
        weights_.weigh_again(first + r, strip_row(r), spans, products_.weight_taker(r));
      }
      return true;
    }
#endif
    return false;
  }

  float* acc_row(int row) {
    return job_.acc + row * job_.acc_stride;
  }

  void scores(int count, const Spans* groups, const Spans& all) {
    const int cols = products_.panel_cols();
    if (cols == kStripCols) {  // one group
      products_.take_panel(0);
      for (const Span& span : all) products_.scores(0, count, span.begin, span.end);
      return;
    }
    for (int panel = 0; panel * cols < kStripCols; ++panel) {
      const int begin = panel * cols, end = begin + cols;
      if (!all.touches(begin, end)) continue;
      products_.take_panel(panel);
      for (int g = 0; g * kGroupRows < count; ++g)
        if (const Span seen = groups[g].within(begin, end); !seen.empty())
          products_.scores(g * kGroupRows, std::min(kGroupRows, count - g * kGroupRows), seen.begin - begin,
                           seen.end - begin);
    }
  }

  // On columns of scores whose rows, `stride` floats apart, begin with that of column 0.
  void run_hook(int first, int count, float* scores, int64_t stride, const Spans& columns) {
    int32_t q_position[kBlockRows];
    for (int r = 0; r < count;) {
      const int head = (first + r) / job_.tokens;
      int n = 0;
      for (; r + n < count && (first + r + n) / job_.tokens == head; ++n)
        q_position[n] = job_.q_position[(first + r + n) % job_.tokens];
      for (const Span& span : columns) {
        Tile tile{scores + r * stride + span.begin,
                  stride,
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

  // A value that is not finite must not reach rows that hide its key: adds again, for each row what it sees.
  void add_seen(int first, int row, int rows) {
    for (int r = row; r < row + rows; ++r) {
      std::fill_n(acc_row(first + r), padded_, 0.0f);
      const ColumnRanges& v = weights_.visible(first + r);
      Spans ranges;
      for (const Span& range : {Span{v.a0, v.a1}, Span{v.b0, v.b1}})
        if (!range.empty()) ranges.append(range);
      products_.add_seen(r, ranges);
    }
  }

  // Whether nothing was added that is not finite.
  bool all_finite(int first, int rows) {
    if constexpr (requires { products_.values_finite(); }) return products_.values_finite();
    const F32 d;
    Vec sum = hn::Zero(d);  // x - x is 0, or NaN for what is not finite
    for (int r = 0; r < rows; ++r)
      for (int64_t c = 0; c < padded_; c += kLanes) {
        const Vec x = hn::LoadU(d, acc_row(first + r) + c);
        sum = hn::Add(sum, hn::Sub(x, x));
      }
    return hn::AllTrue(d, hn::Eq(sum, hn::Zero(d)));
  }

  const SplitJob& job_;
  int rows_;
  float* strip_;
  int32_t* positions_;
  int64_t padded_;
  RowWeights weights_;
  Products products_;
};

void attend_split(const SplitJob& job) noexcept {
  if (job.compute == Compute::kF32) return Split<F32Products<false>>(job).run();
#if ATTEND_BF16_DOT
  if (job.compute == Compute::kBF16) return Split<Bf16Products>(job).run();
  if (is_int8(job.compute)) return Split<Int8Products>(job).run();
  if (job.compute == Compute::kInt8Qk) return Split<Int8KeysProducts>(job).run();
#else
  if (job.compute == Compute::kBF16) return Split<F32Products<true>>(job).run();
  if (job.compute == Compute::kInt8Qk) return Split<QuantisedKeysProducts>(job).run();
#endif
  Split<QuantisedProducts>(job).run();
}

#if ATTEND_BF16_DOT
// Where there are tiles too. Both products in int8 have the same bits with and without; few rows use few of a tile's.
void attend_split_amx(const SplitJob& job) noexcept {
  if (job.compute == Compute::kBF16) return Split<AmxProducts>(job).run();
  if (job.compute == Compute::kInt8Qk) return Split<AmxInt8KeysProducts>(job).run();
  if (is_int8(job.compute) && job.heads * job.tokens > kGroupRows) return Split<AmxInt8Products>(job).run();
  attend_split(job);
}
#endif

}  // namespace HWY_NAMESPACE
}  // namespace attend
HWY_AFTER_NAMESPACE();
