// Products of a split in f32: queries with panels of keys, weights with values. See math-inl.h on how it is included.
#include <algorithm>
#include <bit>
#include <type_traits>

#include "attend/simd/split.h"
#include "simd/split_layout.h"

namespace attend {
namespace HWY_NAMESPACE {

using split_layout::kBlockRows;
using split_layout::kGroupRows;

// Keys and values of a job, by its columns.
class JobKeys {
 public:
  explicit JobKeys(const SplitJob& job) : job_(job) {}

  // Calls f(row 0, stride, first column, count) for the runs of keys under columns [begin, end): a pointer, or
  // CodedRows.
  template <class F>
  void each_key_run(int begin, int end, F f) const {
    each_run(begin, end, [&](const KeyRun& run, int64_t row, int col, int count) {
      if (run.k_type == DType::kQ4_C) {
        f(ChannelRows<DType::kQ4_C>(run.keys(), row, job_.d), run.k_stride, col, count);
      } else if (run.k_type == DType::kQ2_C) {
        f(ChannelRows<DType::kQ2_C>(run.keys(), row, job_.d), run.k_stride, col, count);
      } else {
        typed(run.k_type, run.k, job_.d, [&](const auto k) { f(k + row * run.k_stride, run.k_stride, col, count); });
      }
    });
  }
  template <class F>
  void each_value_run(int begin, int end, F f) const {
    // Runs that only the groups of their keys set apart are one to values.
    RowRun rows;
    int first = 0, so_far = 0;
    auto flush = [&] {
      if (so_far > 0)
        typed_values(rows.type, rows.data, job_.dv, [&](const auto v) { f(v, rows.stride, first, so_far); });
    };
    each_run(begin, end, [&](const KeyRun& run, int64_t row, int col, int count) {
      const RowRun next = run.values().from(row);
      if (so_far > 0 && next.type == rows.type && next.stride == rows.stride && next.data == rows.row(so_far)) {
        so_far += count;
        return;
      }
      flush();
      rows = next, first = col, so_far = count;
    });
    flush();
  }

  // Whether all values are f32.
  bool plain_values() const {
    return std::all_of(job_.runs.begin(), job_.runs.end(), [](const KeyRun& run) { return run.v_type == DType::kF32; });
  }
  // Whether some are integers times a scale.
  bool coded_values() const {
    return std::any_of(job_.runs.begin(), job_.runs.end(), [](const KeyRun& run) {
      return run.v_type != DType::kF32 && run.v_type != DType::kF16 && run.v_type != DType::kBF16;
    });
  }

  // Calls f(run, its first row, first column, count) for the runs under columns [begin, end).
  template <class F>
  void each_run(int begin, int end, F f) const {
    for (const KeyRun& run : job_.runs) {
      if (run.first_slot >= job_.first_slot + end) break;
      const int64_t from = std::max<int64_t>(run.first_slot, job_.first_slot + begin);
      const int64_t to = std::min<int64_t>(run.first_slot + run.count, job_.first_slot + end);
      if (from >= to) continue;
      f(run, from - run.first_slot, static_cast<int>(from - job_.first_slot), static_cast<int>(to - from));
    }
  }
  // f(rows) for the type of values.
  template <class F>
  static void typed_values(DType type, const void* base, int64_t width, F f) {
    if (type == DType::kQ4_1) return f(CodedRows<DType::kQ4_1>{static_cast<const uint8_t*>(base), width});
    if (type == DType::kQ2_1) return f(CodedRows<DType::kQ2_1>{static_cast<const uint8_t*>(base), width});
    typed(type, base, width, f);
  }

 private:
  template <class F>
  static void typed(DType type, const void* base, int64_t width, F f) {
    if (type == DType::kF32) return f(static_cast<const float*>(base));
    if (type == DType::kF16) return f(static_cast<const F16*>(base));
    if (type == DType::kBF16) return f(static_cast<const BF16*>(base));
    const auto* bytes = static_cast<const uint8_t*>(base);
    if (type == DType::kQ8_0) return f(CodedRows<DType::kQ8_0>{bytes, width});
    f(CodedRows<DType::kQ4_0>{bytes, width});
  }

  const SplitJob& job_;
};

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

  Products(const SplitJob& job, int rows) : keys_(job, rows), values_(job, rows) {}

  // The rows that follow are those from `first` on, their strip at `strip`.
  void take_block(int first, int count, float* strip) {
    keys_.take_block(first, count, strip);
    values_.take_block(first, strip);
  }
  int panel_cols() const { return keys_.panel_cols(); }
  // Packs a panel of keys, unless it is.
  void take_panel(int panel) { keys_.take_panel(panel); }
  // Scores of 1 to 6 rows with columns [begin, end) of the panel taken, rounded outwards to 16.
  void scores(int row, int rows, int begin, int end) { keys_.scores(row, rows, begin, end); }
  // The strip now holds the weights of these rows, over `spans` rounded outwards to 16 columns.
  void take_weights(int row, int rows, const Spans& spans) { values_.take_weights(row, rows, spans); }
  // acc += p v over all spans, for 1 to 6 rows.
  void add(int row, int rows, const Spans& spans) { values_.add(row, rows, spans); }
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
        keys_(job),
        panels_(job.scratch + split_layout::layout(job.d, job.dv).panels, rows > kBlockRows),
        queries_(reinterpret_cast<float*>(job.scratch + split_layout::layout(job.d, job.dv).operands)) {
    // A panel that is packed and read at once has to fit the first-level cache beside keys and queries: 16 KB of it.
    const int vecs = kVecs * kLanes == 16 || job.d <= 64 || (job.d <= 128 && rows > kBlockRows) ? kVecs : 2;
    panel_cols_ = vecs * static_cast<int>(kLanes);
  }

  void take_block(int first, int count, float* strip) {
    strip_ = strip;
    q_ = job_.q + static_cast<int64_t>(first) * job_.d;
    if constexpr (kRound) {
      std::copy_n(q_, static_cast<int64_t>(count) * job_.d, queries_);
      round_to_bf16(queries_, static_cast<int64_t>(count) * job_.d);
      q_ = queries_;
    }
  }

  int panel_cols() const { return panel_cols_; }

  void take_panel(int panel) {
    first_col_ = panel * panel_cols_;
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

  void scores(int row, int rows, int begin, int end) const {
    begin = begin / 16 * 16, end = (end + 15) / 16 * 16;
    const float *q = q_ + static_cast<int64_t>(row) * job_.d, *panel = panels_.at() + begin;
    float* s = strip_ + static_cast<int64_t>(row) * kStripCols + first_col_ + begin;
    for_rows(rows, [&](auto n) {
      for_vectors((end - begin) / kLanes,
                  [&](auto vectors) { score_panel<n, vectors>(q, job_.d, panel, panel_cols_, s, kStripCols); });
    });
    if constexpr (kRound) {
      for (int r = 0; r < rows; ++r)
        for (int i = 0; i < end - begin; ++i) s[r * kStripCols + i] *= job_.score_scale;
    }
  }

 private:
  const SplitJob& job_;
  JobKeys keys_;
  Panels<float> panels_;
  float *queries_, *strip_ = nullptr;
  const float* q_ = nullptr;
  int panel_cols_, first_col_ = 0;
};

template <bool kRound>
class F32Values {
 public:
  F32Values(const SplitJob& job, int rows)
      : job_(job),
        keys_(job),
        values_(reinterpret_cast<float*>(job.scratch + split_layout::layout(job.d, job.dv).values)),
        padded_(padded_dv(job.dv)) {
    const bool narrow = job.dv % 16 != 0;
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
          round_to_bf16(strip_ + static_cast<int64_t>(r) * kStripCols + begin, end - begin);
        }
    }
  }

  void add(int row, int rows, const Spans& spans) {
    for (const Span& span : spans) add(row, rows, span);
  }

  void add_seen(int row, const Spans& ranges) {
    const float* p = strip_ + static_cast<int64_t>(row) * kStripCols;
    for (const Span& range : ranges)
      for (int c = range.begin; c < range.end; ++c)
        if (!marked_hidden(p[c])) add(row, 1, Span{c, c + 1});
  }

 private:
  // From here on rows share f32 copies of the values; fewer read them in place. Half numbers are widened for a group of
  // rows as fast as they are read, coded ones are not.
  static constexpr int kPackHalvesRows = kBlockRows + 1, kPackCodedRows = 13;

  void add(int row, int rows, const Span& span) {
    const float* p = strip_ + static_cast<int64_t>(row) * kStripCols;
    if (pack_values_) {
      pack(span.begin, span.end);
      add_columns<false>(row, rows, p + span.begin, values_ + span.begin * padded_, padded_, span.end - span.begin);
      return;
    }
    keys_.each_value_run(span.begin, span.end, [&](const auto v, int64_t stride, int col, int count) {
      add_columns<true>(row, rows, p + col, v, stride, count);
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

  template <bool kAhead, class Rows>
  void add_columns(int row, int rows, const float* p, Rows v, int64_t v_stride, int count) const {
    int64_t c = 0;
    for (; c + kVecs * kLanes <= padded_; c += kVecs * kLanes)
      add_rows<kVecs, kAhead>(row, rows, p, from_column(v, c), v_stride, count, c);
    if constexpr (kVecs == 4)
      if (c + 2 * kLanes <= padded_)
        add_rows<2, kAhead>(row, rows, p, from_column(v, c), v_stride, count, c), c += 2 * kLanes;
    for (; c < padded_; c += kLanes) add_rows<1, kAhead>(row, rows, p, from_column(v, c), v_stride, count, c);
  }

  template <int kCols, bool kAhead, class Rows>
  void add_rows(int row, int rows, const float* p, Rows v, int64_t v_stride, int count, int64_t c) const {
    float* out = acc_ + row * job_.acc_stride + c;
    for_rows(rows,
             [&](auto n) { add_values<n, kCols, kAhead>(p, kStripCols, v, v_stride, count, out, job_.acc_stride); });
  }

  const SplitJob& job_;
  JobKeys keys_;
  float *values_, *strip_ = nullptr, *acc_ = nullptr;
  bool pack_values_;
  int64_t padded_;
  uint32_t packed_values_ = 0;
};

template <bool kRound>
using F32Products = Products<F32Keys<kRound>, F32Values<kRound>>;

}  // namespace HWY_NAMESPACE
}  // namespace attend
