// From scores to weights, a row of a split at a time: cap, bias, what is hidden, normaliser, hooks. See math-inl.h on
// how it is included.
#include <algorithm>
#include <cstring>

#include "simd/gaps-inl.h"
#include "simd/statistics-inl.h"

namespace attend {
namespace HWY_NAMESPACE {

inline constexpr int kIsa = static_cast<int>(HWY_TARGET == HWY_NEON      ? Isa::kNeon
                                             : HWY_TARGET == HWY_AVX2    ? Isa::kAvx2
                                             : HWY_TARGET == HWY_AVX3_DL ? Isa::kAvx512Bf16
                                                                         : Isa::kAvx512);

class RowWeights {
 public:
  // `positions`: of the strip's columns, for hooks. `mark`: mark hidden keys also where nothing here asks for it.
  RowWeights(const SplitJob& job, const int32_t* positions, bool mark = false) : job_(job), positions_(positions) {
    dense_ = !job.k_position || job.k_position[job.cols - 1] - job.k_position[0] == job.cols - 1;
    if (!dense_) position_lanes_.find(job_.k_position, job_.cols);
    mark_ = mark || job.bias || job.hook || job.mask || job.weight || job.final_hook;
  }

  // Whether weights are the softmax of scores, and whether these are nothing but products.
  bool by_softmax() const {
    return job_.normalizer == Normalizer::kSoftmax && !job_.weight && !job_.final_hook && !job_.given_max;
  }
  bool plain() const { return by_softmax() && job_.softcap == 0 && !job_.bias && !job_.hook; }
#if ATTEND_BF16_DOT
  // From here on weights by softmax are short_exp2_of() scores, which come without `scale` > 0. They are relative to the
  // largest score of the first 64 positions of which the row sees a key, or of all if their sum is then above kMostSum.
  void shorten(float scale) {
    scale_ = scale;
  }
  // Whether rows can be weighed by PassingWeights, with the bits that weigh() gives.
  bool may_pass() const {
    return scale_ != 0 && !job_.scores && !job_.statistics && dense_ && first_position() % kFirst == 0;
  }
  static constexpr int kFirst = 64;
  static constexpr float kMostSum = 0x1p48f;
#endif

  const ColumnRanges& visible(int row) const {
    return job_.visible[row % job_.tokens];
  }
  const uint64_t* mask(int row) const {
    return job_.mask ? job_.mask + row / job_.tokens * job_.mask_head_stride + row % job_.tokens * kMaskWords : nullptr;
  }

  // Scores become weights in place over `spans`; sets max and sum of the row. With hooks or masks the weights of hidden
  // keys are -0.0, and no others are.
  void weigh(int row, float* s, const Spans& all) {
    const Spans spans = rounded(all);
    finish_scores(row, s, spans);
    if (job_.scores) keep_scores(row, s, spans);
    const bool softmax = job_.normalizer == Normalizer::kSoftmax || job_.normalizer == Normalizer::kSignedSoftmax;
    const float max = softmax ? largest(s, spans) : 0.0f;
#if ATTEND_BF16_DOT
    if (scale_ != 0) {
      weigh_briefly(row, s, spans, max);
      if (job_.statistics) gather(row, s, spans);
      return;
    }
#endif
    const bool empty = softmax ? max == kNegInf : all_hidden(s, spans);
    if (softmax) {
      const float offset = job_.given_max ? job_.given_max[row] : max;
      exponentials(row, s, spans, offset == kNegInf ? 0.0f : offset);
      if (job_.weight) run(*job_.weight, row, s, spans, [](auto p) { return negative_zero(p); });
    } else {
      const F32 d;
      const Vec hidden = hn::Set(d, kNegInf);
      run(*job_.weight, row, s, spans, [&](auto p) { return hn::Eq(p, hidden); });
      if (job_.given_inverse) scale(s, spans, job_.given_inverse[row]);
      job_.sum[row] = sum_of(s, spans);
    }
    if (job_.final_hook) {
      run(*job_.final_hook, row, s, spans, [](auto p) { return negative_zero(p); });
      job_.sum[row] = sum_of(s, spans);
    }
    job_.max[row] = empty ? kNegInf : !softmax || job_.given_max ? 0.0f : max;
    if (job_.statistics) gather(row, s, spans);
  }

  // Caps scores of whole vectors, adds the bias and hides what `row` does not see.
  void finish_scores(int row, float* s, const Spans& spans) const {
    for (const Span& span : spans) {
      cap(s, span);
      add_bias(row, s, span);
      hide(row, s, span);
    }
  }
#if ATTEND_BF16_DOT
  // Whether finish_scores() does more than hide.
  bool changes_scores() const {
    return job_.softcap != 0 || job_.bias;
  }
  // The weights of 16 scores at s, 2^(scale s - offset).
  static HWY_INLINE Vec weight(const float* s, Vec scale, Vec offset) {
    return short_exp2_of(hn::MulSub(hn::LoadU(F32(), s), scale, offset));
  }
  float exponent_scale() const {
    return scale_ * 1.44269504f;
  }
  float exponent_offset(float top) const {
    return top == kNegInf ? 0.0f : top * exponent_scale();
  }
  // Sets max and sum of a row; whether weights should be relative to its largest score instead.
  bool keep_sum(int row, float top, float sum) const {
    job_.max[row] = top == kNegInf ? kNegInf : top * scale_;
    job_.sum[row] = sum;
    return !(sum <= kMostSum);
  }
  // weigh() of a row whose sum was too large; put(column, 16 or 32 weights) takes them instead of the strip.
  template <class Put>
  HWY_INLINE void weigh_again(int row, float* s, const Spans& all, Put put) const {
    const Spans spans = rounded(all);
    finish_scores(row, s, spans);
    const float top = largest(s, spans);
    Vec sum = short_exponentials(s, spans, top, put);
    keep_sum(row, top, total(&sum));
  }
#endif

  void run_on_weights(const Hook& hook, int row, float* p, const Spans& all) {
    run(hook, row, p, rounded(all), [](auto x) { return negative_zero(x); });
  }

  static hn::Mask<F32> negative_zero(Vec p) {
    const hn::RebindToUnsigned<F32> du;
    return hn::RebindMask(F32(), hn::Eq(hn::BitCast(du, p), hn::Set(du, 0x80000000u)));
  }

 private:
  static Spans rounded(const Spans& all) {
    Spans spans;
    for (const Span& span : all) spans.append({span.begin / 16 * 16, (span.end + 15) / 16 * 16});
    return spans;
  }

  void cap(float* s, const Span& span) const {
    if (job_.softcap == 0) return;
    const F32 d;
    const Vec cap = hn::Set(d, job_.softcap), inverse = hn::Set(d, 1.0f / job_.softcap);
    for (int c = span.begin; c < span.end; c += static_cast<int>(kLanes))
      hn::StoreU(hn::Mul(cap, tanh_of(hn::Mul(hn::LoadU(d, s + c), inverse))), d, s + c);
  }

  void add_bias(int row, float* s, const Span& span) const {
    if (!job_.bias) return;
    const float* bias =
        job_.bias + row / job_.tokens * job_.bias_head_stride + row % job_.tokens * job_.bias_token_stride;
    const ColumnRanges& v = visible(row);
    add_bias(s, bias, std::max(v.a0, span.begin), std::min(v.a1, span.end));
    add_bias(s, bias, std::max(v.b0, span.begin), std::min(v.b1, span.end));
  }
  void add_bias(float* s, const float* bias, int begin, int end) const {
    const F32 d;
    int c = begin;
    if (job_.bias_col_stride == 1)
      for (; c + kLanes <= end; c += static_cast<int>(kLanes))
        hn::StoreU(hn::Add(hn::LoadU(d, s + c), hn::LoadU(d, bias + c)), d, s + c);
    for (; c < end; ++c) s[c] += bias[c * job_.bias_col_stride];
  }

  void hide(int row, float* s, const Span& span) const {
    const ColumnRanges& v = visible(row);
    const bool whole = (v.a0 <= span.begin && span.end <= v.a1) || (v.b0 <= span.begin && span.end <= v.b1);
    if (whole && !job_.mask) return;
    int from = span.begin;
    for (const Span& seen : {Span{v.a0, v.a1}, Span{v.b0, v.b1}}) {
      if (seen.empty() || seen.end <= span.begin || seen.begin >= span.end) continue;
      std::fill(s + from, s + std::max(from, seen.begin), kNegInf);
      from = std::min(seen.end, span.end);
    }
    std::fill(s + from, s + span.end, kNegInf);
    const uint64_t* words = mask(row);
    if (!words) return;
    const F32 d;
    for (int c = span.begin; c < span.end; c += static_cast<int>(kLanes)) {
      if (words[c / kMaskCols] == ~uint64_t{0}) continue;
      const uint64_t bits = words[c / kMaskCols] >> c % kMaskCols;
      const auto seen = hn::LoadMaskBits(d, reinterpret_cast<const uint8_t*>(&bits));
      hn::StoreU(hn::IfThenElse(seen, hn::LoadU(d, s + c), hn::Set(d, kNegInf)), d, s + c);
    }
  }

  // Of |s| if signs are kept apart. NaN is ignored here (of two where the first is NaN, x86 and AArch64 give the
  // second): exp brings it back.
  float largest(const float* s, const Spans& spans) const {
    const F32 d;
    Vec top[64 / kLanes];
#pragma GCC unroll 16
    for (Vec& t : top) t = hn::Set(d, kNegInf);
    for (const Span& span : spans) {
      int c = span.begin;
      for (; c + 64 <= span.end; c += 64)
#pragma GCC unroll 16
        for (int i = 0; i < 64 / kLanes; ++i) top[i] = hn::Max(magnitude(hn::LoadU(d, s + c + i * kLanes)), top[i]);
      for (; c < span.end; c += static_cast<int>(kLanes)) top[0] = hn::Max(magnitude(hn::LoadU(d, s + c)), top[0]);
    }
#pragma GCC unroll 16
    for (int i = 1; i < 64 / kLanes; ++i) top[0] = hn::Max(top[i], top[0]);
    return hn::GetLane(hn::MaxOfLanes(d, top[0]));
  }
  Vec magnitude(Vec x) const {
    if (job_.normalizer == Normalizer::kSoftmax) return x;
    return hn::IfThenElse(hn::Eq(x, hn::Set(F32(), kNegInf)), x, hn::Abs(x));
  }

  static bool all_hidden(const float* s, const Spans& spans) {
    const F32 d;
    for (const Span& span : spans)
      for (int c = span.begin; c < span.end; c += static_cast<int>(kLanes))
        if (!hn::AllTrue(d, hn::Eq(hn::LoadU(d, s + c), hn::Set(d, kNegInf)))) return false;
    return true;
  }

  void exponentials(int row, float* s, const Spans& spans, float shift) const {
    const bool with_sign = job_.normalizer == Normalizer::kSignedSoftmax;
    if (with_sign) {
      exponentials<true, true>(row, s, spans, shift);
    } else if (mark_ || job_.given_inverse) {
      exponentials<false, true>(row, s, spans, shift);
    } else {
      exponentials<false, false>(row, s, spans, shift);
    }
  }

  template <bool kSigned, bool kMarked>
  void exponentials(int row, float* s, const Spans& spans, float shift) const {
    const F32 d;
    const Vec offset = hn::Set(d, shift), hidden = hn::Set(d, kNegInf);
    const Vec inverse = hn::Set(d, job_.given_inverse ? job_.given_inverse[row] : 1.0f);
    Vec lanes[16 / kLanes];
    for (auto& lane : lanes) lane = hn::Zero(d);
    for (const Span& span : spans)
#pragma GCC unroll 4
      for (int c = span.begin; c < span.end; c += 16)
#pragma GCC unroll 4
        for (int i = 0; i < 16 / kLanes; ++i) {
          float* at = s + c + i * kLanes;
          const Vec x = hn::LoadU(d, at);
          Vec p = exp_of(hn::Sub(kSigned ? magnitude(x) : x, offset));
          if constexpr (kMarked) p = hn::Mul(p, inverse);
          lanes[i] = hn::Add(lanes[i], p);
          if constexpr (kSigned) p = hn::Add(hn::CopySign(p, x), hn::Zero(d));
          // Hidden keys are told from underflow by the sign of their zero.
          if constexpr (kMarked) p = hn::IfThenElse(hn::Eq(x, hidden), hn::Set(d, -0.0f), p);
          hn::StoreU(p, d, at);
        }
    job_.sum[row] = dense_ ? total(lanes) : total_by_position(s, spans, kSigned);
  }

#if ATTEND_BF16_DOT
  // In place; `max`: the largest score.
  void weigh_briefly(int row, float* s, const Spans& spans, float max) {
    auto put = [&](int c, auto... vectors) HWY_ATTR {
      const F32 d;
      for (Vec p : {vectors...}) {
        if (mark_) p = hn::IfThenElse(hn::Eq(hn::LoadU(d, s + c), hn::Set(d, kNegInf)), hn::Set(d, -0.0f), p);
        hn::StoreU(p, d, s + c);
        c += 16;
      }
    };
    auto weigh = [&](float top) HWY_ATTR {
      Vec sum = short_exponentials(s, spans, top, put);
      return keep_sum(row, top, dense_ ? total(&sum) : total_by_position(s, spans, false));
    };
    const float top = first_top(s, spans);
    const bool safe = (max - top) * scale_ <= kSafeDistance;
    if (!safe) std::copy_n(s, kStripCols, before_);
    if (!weigh(top) || safe) return;
    std::copy_n(before_, kStripCols, s);
    weigh(max);
  }
  static constexpr float kSafeDistance = 26;  // 512 e^26 < kMostSum

  int64_t first_position() const {
    return job_.k_position ? job_.k_position[0] : job_.first_position;
  }
  // Of the first 64 positions with a score above -inf.
  float first_top(const float* s, const Spans& spans) const {
    float top = kNegInf;
    if (dense_ && first_position() % kFirst == 0) {
      for (int c = spans.within(0, kStripCols).begin / kFirst * kFirst; c < kStripCols && top == kNegInf; c += kFirst)
        if (const Spans part = spans.part(c, c + kFirst); !part.empty()) top = largest(s, part);
      return top;
    }
    int64_t block = -1;
    for (const Span& span : spans)
      for (int c = span.begin; c < std::min(span.end, job_.cols); ++c) {
        const int64_t position = job_.k_position ? job_.k_position[c] : job_.first_position + c;
        if (position / kFirst != block && top > kNegInf) return top;
        block = position / kFirst;
        top = s[c] > top ? s[c] : top;
      }
    return top;
  }

  // Their sum, in lanes.
  template <class Put>
  HWY_INLINE Vec short_exponentials(const float* s, const Spans& spans, float top, Put put) const {
    const F32 d;
    const Vec scale = hn::Set(d, exponent_scale()), offset = hn::Set(d, exponent_offset(top));
    Vec sum = hn::Zero(d);
    auto weights = [&](int c) HWY_ATTR {
      const Vec p = weight(s + c, scale, offset);
      sum = hn::Add(sum, p);
      return p;
    };
    for (const Span& span : spans) {
      int c = span.begin;
      for (; c + 32 <= span.end; c += 32) {
        const Vec low = weights(c);
        put(c, low, weights(c + 16));
      }
      if (c < span.end) put(c, weights(c));
    }
    return sum;
  }
#endif

  // Calls a hook on a row; what is hidden before is so after, and nothing else looks like it.
  template <class IsHidden>
  void run(const Hook& hook, int row, float* s, const Spans& spans, IsHidden is_hidden) {
    const F32 d;
    const int32_t q_position = job_.q_position[row % job_.tokens];
    for (const Span& span : spans) {
      std::copy(s + span.begin, s + span.end, before_);
      Tile tile{s + span.begin,
                kStripStride,
                1,
                span.end - span.begin,
                job_.batch,
                job_.first_head + row / job_.tokens,
                &q_position,
                positions_ + span.begin};
      hook.run[kIsa](hook.self, tile);
      for (int c = span.begin; c < span.end; c += static_cast<int>(kLanes)) {
        const Vec after = hn::Add(hn::LoadU(d, s + c), hn::Zero(d));
        const auto hidden = is_hidden(hn::LoadU(d, before_ + (c - span.begin)));
        hn::StoreU(hn::IfThenElse(hidden, hn::Set(d, -0.0f), after), d, s + c);
      }
    }
  }

  void keep_scores(int row, const float* s, const Spans& spans) const {
    float* to =
        job_.scores + row / job_.tokens * job_.scores_head_stride + row % job_.tokens * job_.scores_token_stride;
    for (const Span& span : spans) {
      const int end = std::min(span.end, job_.cols);
      std::copy(s + span.begin, s + end, to + span.begin);
      for (int c = span.begin; scale_ != 0 && c < end; ++c) to[c] *= scale_;
    }
  }

  void gather(int row, const float* p, const Spans& spans) const {
    const KeyStatistics to = from(*job_.statistics, row / job_.tokens * kStripCols);
    for (const Span& span : spans)
      gather_columns(p, span.begin, span.end, job_.attended[row], job_.q_position[row % job_.tokens], to);
  }

  static void scale(float* s, const Spans& spans, float factor) {
    const F32 d;
    for (const Span& span : spans)
      for (int c = span.begin; c < span.end; c += static_cast<int>(kLanes))
        hn::StoreU(hn::Mul(hn::LoadU(d, s + c), hn::Set(d, factor)), d, s + c);
  }

  float sum_of(const float* p, const Spans& spans) const {
    if (!dense_) return total_by_position(p, spans, false);
    const F32 d;
    Vec lanes[16 / kLanes];
    for (auto& lane : lanes) lane = hn::Zero(d);
    for (const Span& span : spans)
      for (int c = span.begin; c < span.end; c += 16)
        for (int i = 0; i < 16 / kLanes; ++i) lanes[i] = hn::Add(lanes[i], hn::LoadU(d, p + c + i * kLanes));
    return total(lanes);
  }

  float total_by_position(const float* p, const Spans& spans, bool magnitudes) const {
    Vec lanes[16 / kLanes];
    for (auto& lane : lanes) lane = hn::Zero(F32());
    position_lanes_.add(p, spans, magnitudes, lanes);
    return total(lanes);
  }

  const SplitJob& job_;
  const int32_t* positions_;
  bool dense_, mark_;
  float scale_ = 0;               // that scores lack; 0: none, and weights are exp_of() them
  PositionLanes position_lanes_;  // where the keys are not dense
  alignas(64) float before_[kStripCols];
};

}  // namespace HWY_NAMESPACE
}  // namespace attend
