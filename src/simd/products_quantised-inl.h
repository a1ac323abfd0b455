// Products of quantised operands: a row of a query, key or value is integers (or e4m3 numbers) times one scale; so are
// the weights of a row over each 64 positions, the scales of the values among them. Sums of integers are exact in f32,
// so int8 has the same bits however it is multiplied. See math-inl.h on how it is included.
#include <algorithm>
#include <array>

namespace attend {
namespace HWY_NAMESPACE {

// Queries and keys as `Operands`, which rounds, packs and multiplies them. Keys may be packed twice: as they are, and
// smoothed.
template <class Operands>
class QuantisedKeys {
 public:
  QuantisedKeys(const SplitJob& job, int rows)
      : job_(job),
        keys_(job),
        blocks_(job),
        smoothing_(job, blocks_),
        operands_(job),
        forms_{Form(job, rows, false), Form(job, rows, true)} {}

  void take_block(int first, int count, float* strip) {
    strip_ = strip;
    for (int r = 0; r < count; ++r) operands_.take_query(job_.q + static_cast<int64_t>(first + r) * job_.d, r);
    smoothing_.take_block(first, count);
  }

  int panel_cols() const { return kPanelCols; }

  void take_panel(int panel) {
    panel_ = panel;
    for (Form& form : forms_) form.due = true;
  }

  void scores(int row, int rows, int begin, int end) {
    scores_to(strip_ + static_cast<int64_t>(row) * kStripStride + panel_ * kPanelCols, kStripStride, row, rows, begin,
              end, None());
  }

  int steps() const { return operands_.steps(); }
  template <class Between>
  void scores_to(float* to, int64_t stride, int rows, int begin, int end, Between between) {
    scores_to(to, stride, 0, rows, begin, end, between);
  }

 private:
  struct None {};

  template <class Between>
  void scores_to(float* to, int64_t stride, int row, int rows, int begin, int end, Between between) {
    begin = begin / 16 * 16, end = (end + 15) / 16 * 16;
    const int first = panel_ * kPanelCols;
    float* s = to + begin;
    if (const int b = smoothing_.block_of(row, rows, first + begin, first + end); b >= 0)
      return multiply(smoothed(), b, row, rows, begin, end, s, stride, between);
    multiply(plain(), -1, row, rows, begin, end, s, stride, between);
    if (!smoothing_.active()) return;
    for (int b = 0; b < kWeightBlocks; ++b) {
      const int from = std::max(blocks_.begin(b), first + begin), last = std::min(blocks_.end(b), first + end);
      bool some = false;
      for (int r = row; r < row + rows; ++r) some |= smoothing_.is_smooth(r, b);
      if (from >= last || !some) continue;
      alignas(64) float smooth[Operands::kMostRows * kPanelCols];
      multiply(smoothed(), b, row, rows, begin, end, smooth, kPanelCols, None());
      for (int r = 0; r < rows; ++r)
        if (smoothing_.is_smooth(row + r, b))
          std::copy_n(smooth + r * kPanelCols + (from - first - begin), last - from,
                      s + r * stride + (from - first - begin));
    }
  }

  static constexpr int kPanelCols = Operands::kPanelCols;

  // Keys as they are, or smoothed.
  struct Form {
    Form(const SplitJob& job, int rows, bool second)
        : panels(job.scratch + split_layout::layout(job.d, job.dv).panels +
                     (second ? Operands::panels_bytes(job, rows) : 0),
                 Operands::keeps(job, rows)) {}
    Panels<typename Operands::Word> panels;
    bool due = false;  // the panel taken may have yet to be packed
    float scale[kStripCols] = {};
  };

  // Packs the panel taken, unless it is.
  Form& plain() {
    Form& form = forms_[0];
    if (!is_due(form)) return form;
    const int first = panel_ * kPanelCols, end = std::min(first + kPanelCols, job_.cols);
    if (end < first + kPanelCols) clear(form);
    pack(form, first, end, nullptr);
    return form;
  }
  Form& smoothed() {
    Form& form = forms_[1];
    if (!is_due(form)) return form;
    const int first = panel_ * kPanelCols, end = first + kPanelCols;
    clear(form);
    for (int b = 0; b < kWeightBlocks; ++b) {
      const int from = std::max(first, blocks_.begin(b)), to = std::min(end, blocks_.end(b));
      if (from < to && smoothing_.may_smooth(b)) pack(form, from, to, smoothing_.mean(b));
    }
    return form;
  }
  bool is_due(Form& form) const {
    if (!form.due) return false;
    form.due = false;
    return form.panels.take(panel_, operands_.words() * kPanelCols);
  }
  void clear(Form& form) const {
    std::fill_n(form.panels.at(), operands_.words() * kPanelCols, typename Operands::Word{0});
  }
  void pack(Form& form, int begin, int end, const float* mean) {
    keys_.each_key_run(begin, end, [&](auto k, int64_t stride, int col, int count) {
      for (int i = 0; i < count; i += 16)
        operands_.pack(k + i * stride, stride, std::min(16, count - i), mean, form.scale + col + i,
                       form.panels.at() + (col + i - panel_ * kPanelCols));
    });
  }

  template <class Between>
  void multiply(const Form& form, int block, int row, int rows, int begin, int end, float* out, int64_t out_stride,
                Between between) const {
    static constexpr float kNone = 0;
    const float* shift = block < 0 ? &kNone : smoothing_.shift(row, block);
    const int64_t shift_stride = block < 0 ? 0 : Smoothing::kShiftStride;
    const auto* panel = form.panels.at() + begin;
    const float* scales = form.scale + panel_ * kPanelCols + begin;
    if constexpr (std::is_same_v<Between, None>) {
      operands_.multiply(row, rows, panel, end - begin, scales, shift, shift_stride, out, out_stride);
    } else {
      operands_.multiply(row, rows, panel, end - begin, scales, shift, shift_stride, out, out_stride, between);
    }
  }

  const SplitJob& job_;
  JobKeys keys_;
  PositionBlocks blocks_;
  Smoothing smoothing_;
  Operands operands_;
  std::array<Form, 2> forms_;
  float* strip_ = nullptr;
  int panel_ = 0;
};

// Rows as they come, `padded` floats each.
template <class Rows>
HWY_INLINE void widen_rows(Rows rows, int64_t stride, int count, int64_t width, int64_t padded, const float* mean,
                           float* to) {
  pack_values(rows, stride, count, width, padded, to);
  if (!mean) return;
  const F32 d;
  for (int r = 0; r < count; ++r)
    for (int64_t c = 0; c < padded; c += kLanes)
      hn::StoreU(hn::Sub(hn::LoadU(d, to + r * padded + c), hn::LoadU(d, mean + c)), d, to + r * padded + c);
}

// What scores are multiplied by that turned rows have given, beside scales.
inline float norm_of(const SplitJob& job) {
  return is_turned(job.compute) ? 1 / static_cast<float>(Turn::order(job.d)) : 1.0f;
}

// Operands kept and multiplied in f32.
class FloatOperands {
 public:
  using Word = float;
  static constexpr int kPanelCols = kVecs * static_cast<int>(kLanes);
  static constexpr int kMostRows = kGroupRows;  // multiplied at once

  explicit FloatOperands(const SplitJob& job)
      : job_(job),
        quantiser_(job.compute),
        queries_(reinterpret_cast<float*>(job.scratch + split_layout::layout(job.d, job.dv).operands)) {}

  int64_t words() const { return job_.d; }
  // Two forms of keys leave no room for more than a panel of each.
  static bool keeps(const SplitJob& job, int rows) { return rows > kBlockRows && job.compute != Compute::kInt8Qk; }
  static int64_t panels_bytes(const SplitJob& job, int) { return job.d * kPanelCols * int64_t{4}; }

  void take_query(const float* q, int row) {
    float* to = queries_ + row * job_.d;
    std::copy_n(q, job_.d, to);
    if (is_turned(job_.compute)) Turn::apply(to, job_.d);
    query_scale_[row] = job_.score_scale * norm_of(job_) * quantiser_.quantise(to, job_.d);
  }

  template <class Rows>
  void pack(Rows k, int64_t stride, int count, const float* mean, float* scales, float* panel) const {
    alignas(64) float wide[16 * 512];
    const int64_t padded = padded_dv(job_.d);
    widen_rows(k, stride, count, job_.d, padded, mean, wide);
    for (int r = 0; r < count; ++r) {
      if (is_turned(job_.compute)) Turn::apply(wide + r * padded, job_.d);
      scales[r] = quantiser_.quantise(wide + r * padded, job_.d);
    }
    pack_keys(static_cast<const float*>(wide), padded, count, job_.d, panel, kPanelCols);
  }

  void multiply(int row, int rows, const float* panel, int cols, const float* scales, const float* shift,
                int64_t shift_stride, float* out, int64_t out_stride) const {
    for_rows(rows, [&](auto n) {
      for_vectors(cols / kLanes, [&](auto vectors) {
        score_panel<n, vectors>(queries_ + static_cast<int64_t>(row) * job_.d, job_.d, panel, kPanelCols, out,
                                out_stride);
      });
    });
    const F32 d;
    for (int r = 0; r < rows; ++r) {
      const Vec scale = hn::Set(d, query_scale_[row + r]), add = hn::Set(d, shift[r * shift_stride]);
      for (int c = 0; c < cols; c += static_cast<int>(kLanes)) {
        float* at = out + r * out_stride + c;
        hn::StoreU(hn::MulAdd(hn::LoadU(d, at), hn::Mul(scale, hn::LoadU(d, scales + c)), add), d, at);
      }
    }
  }

 private:
  const SplitJob& job_;
  Quantiser quantiser_;
  float* queries_;
  float query_scale_[kBlockRows];
};

// Weights by blocks of 64 positions, with the scales of their values.
class WeightBlocks {
 public:
  explicit WeightBlocks(const SplitJob& job) : blocks_(job), quantiser_(job.compute) {}

  const Quantiser& quantiser() const { return quantiser_; }
  int begin(int b) const { return blocks_.begin(b); }
  int end(int b) const { return blocks_.end(b); }
  float* value_scales() { return value_scale_; }
  // Once the scales of values in [begin, end) are known.
  void take_values(int begin, int end) {
    for (int i = begin; i < end; ++i) bad_values_ |= value_scale_[i] != value_scale_[i];
  }
  bool values_finite() const { return !bad_values_; }
  const float* scales(int row) const { return scale_[row]; }  // by block
  float* scales(int row) { return scale_[row]; }

  // Weights of a row in block `b` over `spans` times the scales of their values, as operands: calls store(column,
  // vector, count) for up to kLanes columns.
  template <class Store>
  void take(const float* p, int row, int b, const Spans& spans, Store store) {
    const F32 d;
    Vec top = hn::Zero(d), bad = hn::Zero(d);  // bad becomes NaN where something is not finite
    for (const Span& span : spans) {
      const Span part = part_of(b, span);
      for (int c = part.begin; c < part.end; c += static_cast<int>(kLanes)) {
        const Vec x = weighted(p, c, part.end - c);
        top = hn::Max(top, x);
        bad = hn::Add(bad, hn::Sub(x, x));
      }
    }
    const float largest = hn::GetLane(hn::MaxOfLanes(d, top));
    const bool finite = hn::AllTrue(d, hn::Eq(bad, hn::Zero(d))), some = finite && largest >= 0x1p-100f;
    scale_[row][b] = some     ? largest / quantiser_.weight_levels()
                     : finite ? 0.0f
                              : std::numeric_limits<float>::quiet_NaN();
    const Vec factor = hn::Set(d, some ? quantiser_.weight_levels() / largest : 0.0f);
    for (const Span& span : spans) {
      const Span part = part_of(b, span);
      for (int c = part.begin; c < part.end; c += static_cast<int>(kLanes)) {
        const Vec x = finite ? hn::Mul(weighted(p, c, part.end - c), factor) : hn::Zero(d);
        store(c, quantiser_.round(x), std::min(part.end - c, static_cast<int>(kLanes)));
      }
    }
  }

 private:
  // Hidden keys have weight 0, whatever their values are.
  HWY_INLINE Vec weighted(const float* p, int c, int n) const {
    const F32 d;
    Vec weight = hn::LoadU(d, p + c);
    if (n < kLanes) weight = hn::IfThenElseZero(hn::FirstN(d, static_cast<size_t>(n)), weight);
    const Vec x = hn::Mul(weight, hn::LoadU(d, value_scale_ + c));
    return bad_values_ ? hn::IfThenZeroElse(hn::Eq(weight, hn::Zero(d)), x) : x;
  }
  Span part_of(int b, const Span& span) const {
    return {std::max(span.begin, blocks_.begin(b)), std::min(span.end, blocks_.end(b))};
  }

  PositionBlocks blocks_;
  Quantiser quantiser_;
  float value_scale_[kStripCols + 16] = {};
  bool bad_values_ = false;  // some value is not finite
  float scale_[kMostBlockRows][kWeightBlocks];
};

// Weights and values multiplied in f32.
class QuantisedValues {
 public:
  static constexpr bool kShortWeights = false, kOverwrites = false;

  QuantisedValues(const SplitJob& job, int)
      : job_(job),
        keys_(job),
        blocks_(job),
        values_(reinterpret_cast<float*>(job.scratch + split_layout::layout(job.d, job.dv).values)),
        padded_(padded_dv(job.dv)) {}

  void take_block(int first, float* strip) {
    strip_ = strip;
    acc_ = job_.acc + first * job_.acc_stride;
  }

  void take_weights(int row, int rows, const Spans& spans) {
    for (const Span& span : spans) pack(span);
    const F32 d;
    for (int r = row; r < row + rows; ++r) {
      float* p = strip_ + static_cast<int64_t>(r) * kStripStride;
      for (int b = 0; b < kWeightBlocks; ++b)
        blocks_.take(p, r, b, spans, [&](int c, Vec x, int n) {
          hn::BlendedStore(x, hn::FirstN(d, static_cast<size_t>(n)), d, p + c);
        });
    }
  }

  void add(int row, int rows, const Spans& spans) {
    for (int b = 0; b < kWeightBlocks; ++b) {
      bool some = false;
      for (const Span& span : spans) {
        const Span part{std::max(span.begin, blocks_.begin(b)), std::min(span.end, blocks_.end(b))};
        if (part.empty()) continue;
        if (!some) std::fill_n(sums_, rows * padded_, 0.0f);
        some = true;
        add_part(row, rows, part);
      }
      if (some) add_sums(row, rows, b);
    }
  }

  // What a row does not see has weight 0 and values that are finite.
  void add_seen(int row, const Spans& ranges) { add(row, 1, ranges); }

 private:
  void pack(const Span& span) {
    for (int chunk = span.begin / kWeightBlock; chunk * kWeightBlock < span.end; ++chunk) {
      if (packed_values_ >> chunk & 1) continue;
      packed_values_ |= 1u << chunk;
      const int begin = chunk * kWeightBlock, end = std::min(job_.cols, begin + kWeightBlock);
      keys_.each_value_run(begin, end, [&](auto v, int64_t stride, int col, int count) {
        pack_values(v, stride, count, job_.dv, padded_, values_ + col * padded_);
      });
      for (int c = begin; c < end; ++c)
        blocks_.value_scales()[c] = blocks_.quantiser().quantise(values_ + c * padded_, job_.dv);
      blocks_.take_values(begin, end);
    }
  }

  void add_part(int row, int rows, const Span& part) {
    const float *p = strip_ + static_cast<int64_t>(row) * kStripStride + part.begin,
                *v = values_ + part.begin * padded_;
    for (int64_t c = 0; c < padded_;) {
      const int64_t vectors = std::min<int64_t>(kVecs, (padded_ - c) / kLanes);
      for_rows(rows, [&](auto n) {
        for_vectors(vectors, [&](auto count) {
          add_values<n, count, false>(p, kStripStride, v + c, padded_, part.end - part.begin, sums_ + c, padded_);
        });
      });
      c += vectors * kLanes;
    }
  }

  void add_sums(int row, int rows, int b) {
    const F32 d;
    for (int r = 0; r < rows; ++r) {
      const Vec scale = hn::Set(d, blocks_.scales(row + r)[b]);
      float* acc = acc_ + (row + r) * job_.acc_stride;
      for (int64_t c = 0; c < padded_; c += kLanes)
        hn::StoreU(hn::MulAdd(scale, hn::LoadU(d, sums_ + r * padded_ + c), hn::LoadU(d, acc + c)), d, acc + c);
    }
  }

  const SplitJob& job_;
  JobKeys keys_;
  WeightBlocks blocks_;
  float *values_, *strip_ = nullptr, *acc_ = nullptr;
  int64_t padded_;
  uint32_t packed_values_ = 0;
  float sums_[kGroupRows * 512];
};

using QuantisedProducts = Products<QuantisedKeys<FloatOperands>, QuantisedValues>;
using QuantisedKeysProducts = Products<QuantisedKeys<FloatOperands>, F32Values<true>>;

}  // namespace HWY_NAMESPACE
}  // namespace attend
