// Products of quantised operands: a row of a query, key or value is integers (or e4m3 numbers) times one scale; so are
// the weights of a row over each 64 positions, the scales of the values among them. Sums of integers are exact in f32,
// so int8 has the same bits however it is multiplied. See math-inl.h on how it is included.
#include <algorithm>
#include <array>

#include "simd/turn_signs.h"

namespace attend {
namespace HWY_NAMESPACE {

inline constexpr int kWeightBlock = 64;  // positions whose weights share a scale
inline constexpr int kWeightBlocks = kStripCols / kWeightBlock;

// Rounds to e4m3: 3 bits after the leading one, steps of 2^-9 below 2^-6. |x| <= 448.
HWY_INLINE Vec round_to_e4m3(Vec x) {
  const F32 d;
  const hn::RebindToUnsigned<F32> du;
  const auto bits = hn::BitCast(du, x);
  const auto half = hn::Add(hn::Set(du, 0x7ffffu), hn::And(hn::ShiftRight<20>(bits), hn::Set(du, 1)));
  const Vec normal = hn::BitCast(d, hn::And(hn::Add(bits, half), hn::Set(du, 0xfff00000u)));
  const Vec magic = hn::Set(d, 0x1.8p14f), small = hn::Sub(hn::Add(x, magic), magic);
  return hn::IfThenElse(hn::Lt(hn::Abs(x), hn::Set(d, 0x1p-6f)), small, normal);
}

// x <- H S x, S random signs and H the Hadamard matrix (entries 1 and -1) of the largest order that divides `count`,
// block by block; dot products become order() times as large. FlashAttention-3 (Shah et al. 2024, arXiv:2407.08608,
// section 3.3) calls this incoherent processing.
class Turn {
 public:
  static int64_t order(int64_t count) { return count & -count; }

  static void apply(float* x, int64_t count) {
    const F32 d;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
      hn::StoreU(hn::Mul(hn::LoadU(d, x + i), hn::LoadU(d, kTurnSigns.data() + i)), d, x + i);
    for (; i < count; ++i) x[i] *= kTurnSigns[static_cast<size_t>(i)];
    const int64_t n = order(count);
    if (n < kLanes) {
      for (int64_t h = 1; h < n; h *= 2)
        each_pair(count, h, [&](int64_t a, int64_t b) {
          const float sum = x[a] + x[b], difference = x[a] - x[b];
          x[a] = sum, x[b] = difference;
        });
      return;
    }
    for (i = 0; i < count; i += kLanes) {
      Vec v = hn::LoadU(d, x + i);
      v = step(v, hn::Shuffle2301(v), 1);
      v = step(v, hn::Shuffle1032(v), 2);
#if HWY_TARGET != HWY_NEON
      v = step(v, hn::SwapAdjacentBlocks(v), 4);
#if ATTEND_AVX512
      v = step(v, hn::ConcatLowerUpper(d, v, v), 8);
#endif
#endif
      hn::StoreU(v, d, x + i);
    }
    for (int64_t h = kLanes; h < n; h *= 2)
      for (int64_t begin = 0; begin < count; begin += 2 * h)
        for (int64_t a = begin; a < begin + h; a += kLanes) {
          const Vec low = hn::LoadU(d, x + a), high = hn::LoadU(d, x + a + h);
          hn::StoreU(hn::Add(low, high), d, x + a);
          hn::StoreU(hn::Sub(low, high), d, x + a + h);
        }
  }

 private:
  // Lanes i and i ^ distance become their sum and their difference.
  static HWY_INLINE Vec step(Vec v, Vec swapped, int32_t distance) {
    const F32 d;
    const I32 di;
    const auto upper = hn::Ne(hn::And(hn::Iota(di, 0), hn::Set(di, distance)), hn::Zero(di));
    return hn::Add(swapped, hn::IfThenElse(hn::RebindMask(d, upper), hn::Neg(v), v));
  }
  template <class F>
  static void each_pair(int64_t count, int64_t h, F f) {
    for (int64_t begin = 0; begin < count; begin += 2 * h)
      for (int64_t a = begin; a < begin + h; ++a) f(a, a + h);
  }
};

class Quantiser {
 public:
  explicit Quantiser(Compute compute) : e4m3_(is_fp8(compute)) {}

  // Largest magnitude of an operand; weights in int8 are unsigned.
  float levels() const { return e4m3_ ? 448.0f : 127.0f; }
  float weight_levels() const { return e4m3_ ? 448.0f : 255.0f; }
  Vec round(Vec x) const { return e4m3_ ? round_to_e4m3(x) : hn::Round(x); }

  // Makes x operands in place and returns their scale: NaN if some element is not finite, 0 if all are below 2^-100.
  float quantise(float* x, int64_t count) const {
    const F32 d;
    Vec top = hn::Zero(d), bad = hn::Zero(d);
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      const Vec v = hn::LoadU(d, x + i);
      top = hn::Max(top, hn::Abs(v));
      bad = hn::Add(bad, hn::Sub(v, v));
    }
    float largest = hn::GetLane(hn::MaxOfLanes(d, top));
    bool finite = hn::AllTrue(d, hn::Eq(bad, hn::Zero(d)));
    for (; i < count; ++i) {
      largest = std::max(largest, std::abs(x[i]));
      finite = finite && x[i] - x[i] == 0;
    }
    if (!finite || largest < 0x1p-100f) {
      std::fill_n(x, count, 0.0f);
      return finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
    }
    const Vec factor = hn::Set(d, levels() / largest);
    for (i = 0; i + kLanes <= count; i += kLanes) hn::StoreU(round(hn::Mul(hn::LoadU(d, x + i), factor)), d, x + i);
    for (; i < count; ++i) x[i] = hn::GetLane(round(hn::Mul(hn::Set(d, x[i]), factor)));
    return largest / levels();
  }

 private:
  bool e4m3_;
};

// What products of quantised operands share: rows of keys and values with their scales, weights by blocks.
class QuantisedRows {
 public:
  explicit QuantisedRows(const SplitJob& job)
      : job_(job), keys_(job), quantiser_(job.compute), turned_(is_turned(job.compute)) {
    block_begin_.fill(job.cols);
    const int64_t split = (job.k_position ? job.k_position[0] : job.first_position) / kSplitPositions;
    for (int b = 0, c = 0; b < kWeightBlocks; ++b) {
      const int64_t first = split * kSplitPositions + b * kWeightBlock;
      while (c < job.cols && (job.k_position ? job.k_position[c] : job.first_position + c) < first) ++c;
      block_begin_[static_cast<size_t>(b)] = c;
    }
    std::fill(key_scale_, key_scale_ + kStripCols, 0.0f);
  }

  const float* key_scales() const { return key_scale_; }
  int block_begin(int b) const { return block_begin_[static_cast<size_t>(b)]; }
  int block_end(int b) const { return block_begin_[static_cast<size_t>(b) + 1]; }
  const float* weight_scales(int row) const { return weight_scale_[row]; }  // by block

  // A row of queries as operands in place; what their scores are multiplied by, beside the scales of keys.
  float take_query(float* q) const {
    if (turned_) Turn::apply(q, job_.d);
    const float norm = turned_ ? 1 / static_cast<float>(Turn::order(job_.d)) : 1.0f;
    return job_.score_scale * norm * quantiser_.quantise(q, job_.d);
  }

  // f(operands, their stride, first column, count) for at most 16 keys a time.
  template <class F>
  void each_keys(int begin, int end, F f) {
    keys_.each_key_run(begin, end, [&](auto k, int64_t stride, int col, int count) {
      each_rows(k, stride, col, count, job_.d, job_.d, turned_, key_scale_, f);
    });
  }
  template <class F>
  void each_values(int begin, int end, F f) {
    const int64_t padded = padded_dv(job_.dv);
    keys_.each_value_run(begin, end, [&](auto v, int64_t stride, int col, int count) {
      each_rows(v, stride, col, count, job_.dv, padded, false, value_scale_, f);
      for (int i = col; i < col + count; ++i) bad_values_ |= value_scale_[i] != value_scale_[i];
    });
  }

  // Weights of a row over `spans` times the scales of their values, as operands: calls store(block, column, vector,
  // count) for up to kLanes columns of a block.
  template <class Store>
  void take_weights(const float* p, int row, const Spans& spans, Store store) {
    const F32 d;
    for (int b = 0; b < kWeightBlocks; ++b) {
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
      weight_scale_[row][b] = some     ? largest / quantiser_.weight_levels()
                              : finite ? 0.0f
                                       : std::numeric_limits<float>::quiet_NaN();
      const Vec factor = hn::Set(d, some ? quantiser_.weight_levels() / largest : 0.0f);
      for (const Span& span : spans) {
        const Span part = part_of(b, span);
        for (int c = part.begin; c < part.end; c += static_cast<int>(kLanes)) {
          const Vec x = finite ? hn::Mul(weighted(p, c, part.end - c), factor) : hn::Zero(d);
          store(b, c, quantiser_.round(x), std::min(part.end - c, static_cast<int>(kLanes)));
        }
      }
    }
  }

 private:
  template <class Rows, class F>
  void each_rows(Rows rows, int64_t stride, int col, int count, int64_t width, int64_t padded, bool turn, float* scales,
                 F f) {
    alignas(64) float wide[16 * 512];
    for (int i = 0; i < count; i += 16) {
      const int n = std::min(16, count - i);
      pack_values(rows + i * stride, stride, n, width, padded, wide);
      for (int r = 0; r < n; ++r) {
        if (turn) Turn::apply(wide + r * padded, width);
        scales[col + i + r] = quantiser_.quantise(wide + r * padded, width);
      }
      f(wide, padded, col + i, n);
    }
  }

  // Hidden keys have weight 0, whatever their values are.
  HWY_INLINE Vec weighted(const float* p, int c, int n) const {
    const F32 d;
    Vec weight = hn::LoadU(d, p + c);
    if (n < kLanes) weight = hn::IfThenElseZero(hn::FirstN(d, static_cast<size_t>(n)), weight);
    const Vec x = hn::Mul(weight, hn::LoadU(d, value_scale_ + c));
    return bad_values_ ? hn::IfThenZeroElse(hn::Eq(weight, hn::Zero(d)), x) : x;
  }
  Span part_of(int b, const Span& span) const {
    return {std::max(span.begin, block_begin(b)), std::min(span.end, block_end(b))};
  }

  const SplitJob& job_;
  JobKeys keys_;
  Quantiser quantiser_;
  bool turned_;
  std::array<int, kWeightBlocks + 1> block_begin_;
  float key_scale_[kStripCols];
  float value_scale_[kStripCols + 16] = {};
  bool bad_values_ = false;  // some value is not finite
  float weight_scale_[kBlockRows][kWeightBlocks];
};

// Multiplies operands in f32.
class QuantisedProducts {
 public:
  QuantisedProducts(const SplitJob& job, int rows)
      : job_(job),
        rows_(job),
        panels_(job.scratch + split_layout::layout(job.d, job.dv).panels, rows > kBlockRows),
        padded_(padded_dv(job.dv)) {
    const split_layout::Layout layout = split_layout::layout(job.d, job.dv);
    values_ = reinterpret_cast<float*>(job.scratch + layout.values);
    queries_ = reinterpret_cast<float*>(job.scratch + layout.operands);
  }

  void take_block(int first, int count, float* strip) {
    strip_ = strip;
    acc_ = job_.acc + first * job_.acc_stride;
    std::copy_n(job_.q + static_cast<int64_t>(first) * job_.d, static_cast<int64_t>(count) * job_.d, queries_);
    for (int r = 0; r < count; ++r) query_scale_[r] = rows_.take_query(queries_ + r * job_.d);
  }

  int panel_cols() const { return kPanelCols; }

  void take_panel(int panel) {
    first_col_ = panel * kPanelCols;
    if (!panels_.take(panel, job_.d * kPanelCols)) return;
    const int end = first_col_ + kPanelCols;
    if (end > job_.cols) std::fill_n(panels_.at(), job_.d * kPanelCols, 0.0f);
    rows_.each_keys(first_col_, std::min(end, job_.cols), [&](const float* k, int64_t stride, int col, int count) {
      pack_keys(k, stride, count, job_.d, panels_.at() + (col - first_col_), kPanelCols);
    });
  }

  void scores(int row, int rows, int begin, int end) const {
    begin = begin / 16 * 16, end = (end + 15) / 16 * 16;
    float* s = strip_ + static_cast<int64_t>(row) * kStripCols + first_col_ + begin;
    for_rows(rows, [&](auto n) {
      for_vectors((end - begin) / kLanes, [&](auto vectors) {
        score_panel<n, vectors>(queries_ + static_cast<int64_t>(row) * job_.d, job_.d, panels_.at() + begin, kPanelCols,
                                s, kStripCols);
      });
    });
    const F32 d;
    const float* scales = rows_.key_scales() + first_col_ + begin;
    for (int r = 0; r < rows; ++r) {
      const Vec scale = hn::Set(d, query_scale_[row + r]);
      for (int c = 0; c < end - begin; c += static_cast<int>(kLanes)) {
        float* at = s + r * kStripCols + c;
        hn::StoreU(hn::Mul(hn::LoadU(d, at), hn::Mul(scale, hn::LoadU(d, scales + c))), d, at);
      }
    }
  }

  void take_weights(int row, int rows, const Spans& spans) {
    for (const Span& span : spans) pack(span);
    const F32 d;
    for (int r = row; r < row + rows; ++r) {
      float* p = strip_ + static_cast<int64_t>(r) * kStripCols;
      rows_.take_weights(p, r, spans, [&](int, int c, Vec x, int n) {
        hn::BlendedStore(x, hn::FirstN(d, static_cast<size_t>(n)), d, p + c);
      });
    }
  }

  void add(int row, int rows, const Spans& spans) {
    for (int b = 0; b < kWeightBlocks; ++b) {
      bool some = false;
      for (const Span& span : spans) {
        const Span part{std::max(span.begin, rows_.block_begin(b)), std::min(span.end, rows_.block_end(b))};
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
  static constexpr int kPanelCols = kVecs * static_cast<int>(kLanes);

  void pack(const Span& span) {
    for (int chunk = span.begin / kWeightBlock; chunk * kWeightBlock < span.end; ++chunk) {
      if (packed_values_ >> chunk & 1) continue;
      packed_values_ |= 1u << chunk;
      rows_.each_values(chunk * kWeightBlock, std::min(job_.cols, (chunk + 1) * kWeightBlock),
                        [&](const float* v, int64_t stride, int col, int count) {
                          std::copy_n(v, count * stride, values_ + col * padded_);
                        });
    }
  }

  void add_part(int row, int rows, const Span& part) {
    const float *p = strip_ + static_cast<int64_t>(row) * kStripCols + part.begin, *v = values_ + part.begin * padded_;
    for (int64_t c = 0; c < padded_;) {
      const int64_t vectors = std::min<int64_t>(kVecs, (padded_ - c) / kLanes);
      for_rows(rows, [&](auto n) {
        for_vectors(vectors, [&](auto count) {
          add_values<n, count, false>(p, kStripCols, v + c, padded_, part.end - part.begin, sums_ + c, padded_);
        });
      });
      c += vectors * kLanes;
    }
  }

  void add_sums(int row, int rows, int b) {
    const F32 d;
    for (int r = 0; r < rows; ++r) {
      const Vec scale = hn::Set(d, rows_.weight_scales(row + r)[b]);
      float* acc = acc_ + (row + r) * job_.acc_stride;
      for (int64_t c = 0; c < padded_; c += kLanes)
        hn::StoreU(hn::MulAdd(scale, hn::LoadU(d, sums_ + r * padded_ + c), hn::LoadU(d, acc + c)), d, acc + c);
    }
  }

  const SplitJob& job_;
  QuantisedRows rows_;
  Panels<float> panels_;
  float *values_, *queries_, *strip_ = nullptr, *acc_ = nullptr;
  int64_t padded_;
  int first_col_ = 0;
  uint32_t packed_values_ = 0;
  float query_scale_[kBlockRows];
  float sums_[kGroupRows * 512];
};

}  // namespace HWY_NAMESPACE
}  // namespace attend
