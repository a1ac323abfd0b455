// Products of a split in f32: queries with panels of keys, weights with values. See math-inl.h on how it is included.
#include <algorithm>
#include <bit>
#include <type_traits>

#include "attend/simd/split.h"
#include "simd/split_layout.h"

namespace attend {
namespace HWY_NAMESPACE {

// Hidden keys have this weight where something could make others 0; see RowWeights.
HWY_INLINE bool marked_hidden(float weight) {
  return std::bit_cast<uint32_t>(weight) == 0x80000000u;
}

// f(std::integral_constant<int, vectors>) for 1 to kVecs vectors.
template <class F>
HWY_INLINE void for_vectors(int64_t vectors, F f) {
  if constexpr (kVecs == 4) {
    if (vectors == 4) return f(std::integral_constant<int, 4>());
    if (vectors == 3) return f(std::integral_constant<int, 3>());
  }
  if (vectors == 2) return f(std::integral_constant<int, 2>());
  f(std::integral_constant<int, 1>());
}

// Where panels of packed keys lie: each in a place of its own, to be packed once, if several blocks of rows read them;
// else all in one.
template <class T>
class Panels {
 public:
  Panels(std::byte* base, bool keep) : base_(reinterpret_cast<T*>(base)), keep_(keep) {}

  // From now on at() is panel `index`, of `size` elements. Returns whether it has yet to be packed.
  bool take(int index, int64_t size) {
    at_ = base_ + (keep_ ? index * size : 0);
    if (!keep_) return true;
    const uint64_t bit = uint64_t{1} << index;
    const bool is_new = (packed_ & bit) == 0;
    packed_ |= bit;
    return is_new;
  }
  T* at() const { return at_; }

 private:
  T *base_, *at_ = nullptr;
  bool keep_;
  uint64_t packed_ = 0;
};

// The products of a split: queries with keys by `Keys`, weights with values by `Values`.
template <class Keys, class Values>
class Products {
 public:
  static constexpr int kBlockRows = split_layout::kBlockRows, kGroupRows = split_layout::kGroupRows;
  // Whether weights are rounded to 8 bits or fewer, so that short exponentials do.
  static constexpr bool kShortWeights = Values::kShortWeights;
  // Whether add() sets acc, which then needs no zeros.
  static constexpr bool kOverwrites = Values::kOverwrites;

  Products(const SplitJob& job, int rows) : keys_(job, rows), values_(job, rows) {}

  // The rows that follow are those from `first` on, their strip at `strip`.
  void take_block(int first, int count, float* strip) {
    keys_.take_block(first, count, strip);
    values_.take_block(first, strip);
  }
  int panel_cols() const { return keys_.panel_cols(); }
  // Scores from now on come without job.score_scale.
  void leave_scale() requires requires(Keys keys) { keys.leave_scale(); }
  { keys_.leave_scale(); }
  // Packs a panel of keys, unless it is.
  void take_panel(int panel) { keys_.take_panel(panel); }
  // Scores of 1 to 6 rows with columns [begin, end) of the panel taken, rounded outwards to 16.
  void scores(int row, int rows, int begin, int end) { keys_.scores(row, rows, begin, end); }
  // Where weights need not come by the strip (PassingWeights): scores_to() gives scores of all rows with columns
  // [begin, end) of the panel taken and calls between() up to steps() times for a panel;
  // weight_taker() gives what takes weights of a row.
  void pass_weights() requires requires(Values values) { values.pass_weights(); }
  { values_.pass_weights(); }
  int steps() const { return keys_.steps(); }
  template <class Between>
  HWY_INLINE void scores_to(float* to, int64_t stride, int rows, int begin, int end, Between between) {
    keys_.scores_to(to, stride, rows, begin, end, between);
  }
  HWY_INLINE auto weight_taker(int row) const { return values_.weight_taker(row); }
  // The strip now holds the weights of these rows, over `spans` rounded outwards to 16 columns.
  void take_weights(int row, int rows, const Spans& spans) { values_.take_weights(row, rows, spans); }
  // acc += p v over all spans, for 1 to 6 rows.
  void add(int row, int rows, const Spans& spans) { values_.add(row, rows, spans); }
  // Where values are packed: whether those that add() took so far are finite.
  bool values_finite() const requires requires(const Values values) { values.values_finite(); }
  { return values_.values_finite(); }
  // The same for one row and only those keys in `ranges` whose weights are not marked as hidden.
  void add_seen(int row, const Spans& ranges) { values_.add_seen(row, ranges); }

 private:
  Keys keys_;
  Values values_;
};

inline void round_to_bf16(float* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] = to_f32(to_bf16(x[i]));
}

// kRound: every operand is rounded to bf16 first, as Compute::kBF16 asks for.
template <bool kRound>
class F32Keys {
 public:
  F32Keys(const SplitJob& job, int rows)
      : job_(job),
        rows_(rows),
        keys_(job),
        panels_(job.scratch + split_layout::layout(job.d, job.dv).panels, rows > kBlockRows),
        in_place_(job, keys_, rows),
        scattered_(job, keys_, kRound ? kBlockRows : rows),
        queries_(reinterpret_cast<float*>(job.scratch + split_layout::layout(job.d, job.dv).operands)) {
    // A panel that is packed and read at once has to fit the first-level cache beside keys and queries: 16 KB of it.
    const int vecs = kVecs * kLanes == 16 || job.d <= 64 || (job.d <= 128 && rows > kBlockRows) ? kVecs : 2;
    panel_cols_ = vecs * static_cast<int>(kLanes);
    // What is read in place by one group of rows needs no panels.
    if (scattered_.in_use() || (!kRound && rows <= kGroupRows && in_place_.takes() && in_place_.covers(0, kStripCols)))
      panel_cols_ = kStripCols;
  }

  void take_block(int first, int count, float* strip) {
    strip_ = strip;
    q_ = job_.q + static_cast<int64_t>(first) * job_.d;
    if constexpr (kRound) {
      std::copy_n(q_, static_cast<int64_t>(count) * job_.d, queries_);
      round_to_bf16(queries_, static_cast<int64_t>(count) * job_.d);
      q_ = queries_;
    }
    if (!kRound && in_place_.takes()) in_place_.take_block(q_, queries_, strip_);
    if (scattered_.in_use()) scattered_.take_block(queries_, strip_);
  }

  int panel_cols() const { return panel_cols_; }

  void take_panel(int panel) {
    first_col_ = panel * panel_cols_;
    if (scattered_.in_use()) return;
    is_in_place_ = !kRound && in_place_.takes() && in_place_.covers(first_col_, first_col_ + panel_cols_);
    if (is_in_place_) return;
    if (!panels_.take(panel, job_.d * panel_cols_)) return;
    const int begin = first_col_, end = begin + panel_cols_;
    // Columns are read in groups of 16.
    const int last = std::min(end, job_.cols) - begin, padding = (last + 15) / 16 * 16 - last;
    if (padding > 0)
      for (int64_t k = 0; k < job_.d; ++k) std::fill_n(panels_.at() + k * panel_cols_ + last, padding, 0.0f);
    keys_.each_key_run(begin, std::min(end, job_.cols), [&](const auto k, int64_t stride, int col, int count) {
      pack_keys(k, stride, count, job_.d, panels_.at() + (col - begin), panel_cols_);
    });
    if constexpr (kRound) round_to_bf16(panels_.at(), job_.d * panel_cols_);
  }

  void scores(int row, int rows, int begin, int end) {
    begin = begin / 16 * 16, end = (end + 15) / 16 * 16;
    if (scattered_.in_use()) return scattered_.scores(rows, first_col_ + begin, first_col_ + end);
    if (is_in_place_) return in_place_.scores(row, rows, first_col_ + begin, first_col_ + end);
    const float *q = q_ + static_cast<int64_t>(row) * job_.d, *panel = panels_.at() + begin;
    float* s = strip_ + static_cast<int64_t>(row) * kStripStride + first_col_ + begin;
    for_rows(rows, [&](auto n) {
      for_vectors((end - begin) / kLanes,
                  [&](auto vectors) { score_panel<n, vectors>(q, job_.d, panel, panel_cols_, s, kStripStride); });
    });
    if constexpr (kRound) {
      for (int r = 0; r < rows; ++r)
        for (int i = 0; i < end - begin; ++i) s[r * kStripStride + i] *= job_.score_scale;
    }
  }

 private:
  const SplitJob& job_;
  int rows_;
  JobKeys keys_;
  Panels<float> panels_;
  KeysInPlace in_place_;
  ScatteredKeys scattered_;
  float *queries_, *strip_ = nullptr;
  const float* q_ = nullptr;
  int panel_cols_, first_col_ = 0;
  bool is_in_place_ = false;  // the panel taken
};

template <bool kRound>
class F32Values {
 public:
  static constexpr bool kShortWeights = false, kOverwrites = false;

  F32Values(const SplitJob& job, int rows)
      : job_(job),
        keys_(job),
        scattered_(job, keys_, kRound ? kBlockRows : rows),
        values_(reinterpret_cast<float*>(job.scratch + split_layout::layout(job.d, job.dv).values)),
        padded_(padded_dv(job.dv)) {
    const bool narrow = job.dv % 16 != 0;
    few_rows_ = reads_in_place(rows, keys_.coded_values());
    pack_values_ = kRound || narrow ||
                   (rows >= (keys_.coded_values() ? kPackCodedRows : kPackHalvesRows) && !keys_.plain_values());
  }

  void take_block(int first, float* strip) {
    strip_ = strip;
    acc_ = job_.acc + first * job_.acc_stride;
  }

  void take_weights(int row, int rows, const Spans& spans) {
    if constexpr (kRound) {
      for (int r = row; r < row + rows; ++r)
        for (const Span& span : spans) {
          const int begin = span.begin / 16 * 16, end = (span.end + 15) / 16 * 16;
          round_to_bf16(strip_ + static_cast<int64_t>(r) * kStripStride + begin, end - begin);
        }
    }
  }

  void add(int row, int rows, const Spans& spans) {
    for (const Span& span : spans) add(row, rows, span);
  }

  void add_seen(int row, const Spans& ranges) {
    const float* p = strip_ + static_cast<int64_t>(row) * kStripStride;
    for (const Span& range : ranges)
      for (int c = range.begin; c < range.end; ++c)
        if (!marked_hidden(p[c])) add(row, 1, Span{c, c + 1});
  }

 private:
  // From here on rows share f32 copies of the values; fewer read them in place. Half numbers are widened for a group of
  // rows as fast as they are read, coded ones are not.
  static constexpr int kPackHalvesRows = kBlockRows + 1, kPackCodedRows = 13;

  void add(int row, int rows, const Span& span) {
    const float* p = strip_ + static_cast<int64_t>(row) * kStripStride;
    if (scattered_.in_use()) return scattered_.add(rows, p, span.begin, span.end, acc_ + row * job_.acc_stride);
    if (pack_values_) {
      pack(span.begin, span.end);
      add_columns<false>(row, rows, p + span.begin, values_ + span.begin * padded_, padded_, span.end - span.begin);
      return;
    }
    keys_.each_value_run(span.begin, span.end, [&](const auto v, int64_t stride, int col, int count) {
      // The first rows have asked for what others read.
      row == 0 ? add_columns<true>(row, rows, p + col, v, stride, count)
               : add_columns<false>(row, rows, p + col, v, stride, count);
    });
  }

  void pack(int begin, int end) {
    constexpr int kChunk = 64;
    for (int chunk = begin / kChunk; chunk * kChunk < end; ++chunk) {
      if (packed_values_ >> chunk & 1) continue;
      packed_values_ |= 1u << chunk;
      keys_.each_value_run(chunk * kChunk, std::min(job_.cols, (chunk + 1) * kChunk),
                           [&](const auto v, int64_t stride, int col, int count) {
                             float* to = values_ + col * padded_;
                             pack_values(v, stride, count, job_.dv, padded_, to);
                             if constexpr (kRound) round_to_bf16(to, count * padded_);
                           });
    }
  }

  // Of values that a few rows read whole, not some columns of all of them first: memory is read in one stream then. More
  // than this and what is asked for ahead, for the columns that come first, is far from what is read next.
  static constexpr int64_t kStreamedBytes = 9216;

  template <bool kAhead, class Rows>
  void add_columns(int row, int rows, const float* p, Rows v, int64_t v_stride, int count) const {
    if (kAhead && few_rows_) {
      const int64_t bytes = bytes_of_stride(v, v_stride);
      const int step = 32 * bytes > kStreamedBytes ? 16 : 64 * bytes > kStreamedBytes ? 32 : 64;
      for (; count > step; count -= step, p += step, v = v + step * v_stride)
        add_all_columns<kAhead>(row, rows, p, v, v_stride, step);
    }
    add_all_columns<kAhead>(row, rows, p, v, v_stride, count);
  }

  template <bool kAhead, class Rows>
  void add_all_columns(int row, int rows, const float* p, Rows v, int64_t v_stride, int count) const {
    int64_t c = 0;
    for (; c + kVecs * kLanes <= padded_; c += kVecs * kLanes)
      add_rows<kVecs, kAhead>(row, rows, p, v, v_stride, count, c);
    if constexpr (kVecs == 4)
      if (c + 2 * kLanes <= padded_) add_rows<2, kAhead>(row, rows, p, v, v_stride, count, c), c += 2 * kLanes;
    for (; c < padded_; c += kLanes) add_rows<1, kAhead>(row, rows, p, v, v_stride, count, c);
  }

  template <int kCols, bool kAhead, class Rows>
  void add_rows(int row, int rows, const float* p, Rows v, int64_t v_stride, int count, int64_t c) const {
    float* out = acc_ + row * job_.acc_stride + c;
    const Ahead ahead = kAhead ? ahead_of<kCols>(v, v_stride, count, c) : Ahead{};
    for_rows(rows, [&](auto n) {
      add_values<n, kCols, kAhead>(p, kStripStride, from_column(v, c), v_stride, count, out, job_.acc_stride, ahead);
    });
  }

  // Memory is fastest in order. Where rows lie close together, the columns from c on ask for their share of as many rows,
  // whole, and not for their columns.
  template <int kCols, class Rows>
  Ahead ahead_of(Rows v, int64_t v_stride, int count, int64_t c) const {
    const int64_t bytes = row_bytes(type_of(v), job_.dv), stride = bytes_of_stride(v, v_stride);
    const bool close = stride == bytes;
    const int64_t before = (close ? count : 1) * bytes * c / padded_;
    return {first_byte(v) + (is_quantised(type_of(v)) ? kAheadBytes : kPlainAheadBytes) + before,
            close ? bytes * kCols * kLanes / padded_ : stride};
  }

  const SplitJob& job_;
  JobKeys keys_;
  ScatteredValues scattered_;
  float *values_, *strip_ = nullptr, *acc_ = nullptr;
  bool pack_values_, few_rows_;
  int64_t padded_;
  uint32_t packed_values_ = 0;
};

template <bool kRound>
using F32Products = Products<F32Keys<kRound>, F32Values<kRound>>;

}  // namespace HWY_NAMESPACE
}  // namespace attend
