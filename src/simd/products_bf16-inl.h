// Products of a split by bf16 dot products (AVX512_BF16): pairs of neighbouring elements of D, and of neighbouring
// keys, share 32-bit words. See math-inl.h on how it is included.
#include <immintrin.h>

#include <algorithm>
#include <cstring>

namespace attend {
namespace HWY_NAMESPACE {

// sum + x0 w0 + x1 w1 in each lane; denormal inputs and results count as zero.
HWY_INLINE __m512 dot_pairs(__m512 sum, __m512i x, __m512i w) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w));
}

// 16 elements as bf16, rounded to nearest even.
HWY_INLINE __m256i load_bf16(const float* p) {
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(p)));
}
HWY_INLINE __m256i load_bf16(const F16* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_cvtph_ps(half)));
}
HWY_INLINE __m256i load_bf16(const BF16* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

// acc[r, v] += sum_k x[r, k] w[k, v] over words k: x is broadcast, w holds kCols vectors a row.
template <int kRows, int kCols, bool kFromZero>
HWY_INLINE void multiply_pairs(const uint32_t* HWY_RESTRICT x, int64_t x_stride, const uint32_t* HWY_RESTRICT w,
                               int64_t w_stride, int64_t count, float* HWY_RESTRICT out, int64_t out_stride,
                               float scale) {
  __m512 acc[kRows][kCols];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kCols; ++v)
      acc[r][v] = kFromZero ? _mm512_setzero_ps() : _mm512_loadu_ps(out + r * out_stride + v * 16);
  for (int64_t k = 0; k < count; ++k) {
    __m512i b[kCols];
#pragma GCC unroll 8
    for (int v = 0; v < kCols; ++v) b[v] = _mm512_loadu_si512(w + k * w_stride + v * 16);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512i a = _mm512_set1_epi32(static_cast<int>(x[r * x_stride + k]));
#pragma GCC unroll 8
      for (int v = 0; v < kCols; ++v) acc[r][v] = dot_pairs(acc[r][v], a, b[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kCols; ++v)
      _mm512_storeu_ps(out + r * out_stride + v * 16,
                       kFromZero ? _mm512_mul_ps(acc[r][v], _mm512_set1_ps(scale)) : acc[r][v]);
}

// How pairs lie. kPairs: keys pair by position, 2 i with 2 i + 1, without gaps, so that sums do not depend on slots,
// nor on keys that no row sees. kTiles: each key at its place among the 512 positions of the split, words of rows of D
// padded with zeros to tiles of 16.
enum class PairOrder { kPairs, kTiles };

class Bf16Keys {
 public:
  Bf16Keys(const SplitJob& job, int rows, PairOrder order = PairOrder::kPairs)
      : job_(job),
        keys_(job),
        panels_(job.scratch + split_layout::layout(job.d, job.dv).panels,
                rows > (order == PairOrder::kTiles ? split_layout::kMostBlockRows : kBlockRows)),
        queries_(reinterpret_cast<uint32_t*>(job.scratch + split_layout::layout(job.d, job.dv).operands)),
        scale_(job.score_scale),
        used_((job.d + 1) / 2),
        words_(order == PairOrder::kTiles ? (job.d + 31) / 32 * 16 : used_) {}

  void take_block(int first, int count, float* strip) {
    strip_ = strip;
    for (int r = 0; r < count; ++r) {
      to_words(job_.q + static_cast<int64_t>(first + r) * job_.d, job_.d, queries_ + r * words_);
      std::fill(queries_ + r * words_ + used_, queries_ + (r + 1) * words_, 0u);
    }
  }

  void leave_scale() { scale_ = 1; }
  int panel_cols() const { return kPanelCols; }

  void take_panel(int panel) {
    first_col_ = panel * kPanelCols;
    if (!panels_.take(panel, words_ * kPanelCols)) return;
    const int begin = first_col_, end = begin + kPanelCols;
    std::fill(panels_.at() + (end > job_.cols ? 0 : used_) * kPanelCols, panels_.at() + words_ * kPanelCols, 0u);
    keys_.each_key_run(begin, std::min(end, job_.cols), [&](const auto k, int64_t stride, int col, int count) {
      pack_pairs(k, stride, count, panels_.at() + (col - begin));
    });
  }

  void scores(int row, int rows, int begin, int end) const {
    begin = begin / 16 * 16, end = (end + 15) / 16 * 16;
    const uint32_t *q = queries_ + row * words_, *panel = panels_.at() + begin;
    float* s = strip_ + static_cast<int64_t>(row) * kStripStride + first_col_ + begin;
    for_rows(rows, [&](auto n) {
      for_vectors((end - begin) / 16, [&](auto vectors) {
        multiply_pairs<n, vectors, true>(q, words_, panel, kPanelCols, words_, s, kStripStride, scale_);
      });
    });
  }

 protected:
  static constexpr int kPanelCols = 64;
  static constexpr int kMostWords = split_layout::kMostWords;

  // Elements [0, count) in pairs, an odd last one with a zero.
  template <class T>
  static void to_words(const T* x, int64_t count, uint32_t* words) {
    uint16_t* to = reinterpret_cast<uint16_t*>(words);
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), load_bf16(x + i));
    for (; i < count; ++i) to[i] = to_bf16(scalar_f32(x[i])).bits;
    if (count % 2) to[count] = 0;
  }

  template <template <DType> class Rows, DType kType>
  static void to_words(Rows<kType> x, int64_t count, uint32_t* words) {
    float wide[512];
    pack_values(x, 0, 1, count, count, wide);
    to_words(wide, count, words);
  }

  template <class Rows>
  void pack_pairs(Rows keys, int64_t stride, int count, uint32_t* to) const {
    // Words move as floats do: the transposition is the same.
    float* panel = reinterpret_cast<float*>(to);
    if constexpr (std::is_same_v<Rows, const BF16*>)
      if (job_.d % 8 == 0 && stride % 2 == 0 && count % 16 == 0)
        return pack_keys(reinterpret_cast<const float*>(keys), stride / 2, count, used_, panel, kPanelCols);
    alignas(64) uint32_t rows[16 * kMostWords];
    for (int c = 0; c < count; c += 16) {
      const int n = std::min(16, count - c);
      for (int i = 0; i < n; ++i) to_words(keys + (c + i) * stride, job_.d, rows + i * used_);
      pack_keys(reinterpret_cast<const float*>(rows), used_, n, used_, panel + c, kPanelCols);
    }
  }

  const SplitJob& job_;
  JobKeys keys_;
  Panels<uint32_t> panels_;
  uint32_t* queries_;
  float* strip_ = nullptr;
  float scale_;
  int first_col_ = 0;
  int64_t used_, words_;  // of a row
};

class Bf16Values {
 public:
  static constexpr bool kShortWeights = true, kOverwrites = false;

  Bf16Values(const SplitJob& job, int, PairOrder order = PairOrder::kPairs)
      : job_(job), keys_(job), padded_(padded_dv(job.dv)) {
    const split_layout::Layout layout = split_layout::layout(job.d, job.dv);
    values_ = reinterpret_cast<uint32_t*>(job.scratch + layout.values);
    weights_ = reinterpret_cast<uint32_t*>(job.scratch + layout.operands) +
               split_layout::kMostBlockRows * static_cast<int64_t>(split_layout::kMostWords);
    rows_ = reinterpret_cast<const void**>(job.scratch + layout.rows);
    order == PairOrder::kTiles ? place_keys() : pair_keys();
    find_values();
  }

  void take_block(int first, float* strip) {
    strip_ = strip;
    acc_ = job_.acc + first * job_.acc_stride;
  }

  // Rounds weights to bf16, each at the place of its key among pairs.
  void take_weights(int row, int rows, const Spans& spans) {
    for (int r = row; r < row + rows; ++r) {
      const float* p = strip_ + static_cast<int64_t>(r) * kStripStride;
      uint16_t* to = reinterpret_cast<uint16_t*>(weights_ + static_cast<int64_t>(r) * kMostPairs);
      for (const Span& span : spans) {
        const Span pairs = pairs_of(span);
        to[2 * pairs.begin] = 0, to[2 * pairs.end - 1] = 0;
        if (!dense_) std::fill(to + 2 * pairs.begin, to + 2 * pairs.end, uint16_t{0});
      }
      place_weights(p, spans, to);
    }
  }

  void add(int row, int rows, const Spans& spans) {
    int done = 0;  // neighbouring spans may share a pair
    for (const Span& span : spans) {
      Span pairs = pairs_of(span);
      pairs.begin = std::max(pairs.begin, done);
      done = pairs.end;
      if (!pairs.empty()) add(row, rows, pairs);
    }
  }

  void add_seen(int row, const Spans& ranges) {
    const float* p = strip_ + static_cast<int64_t>(row) * kStripStride;
    uint32_t seen[kMostPairs] = {};
    const Span pairs = mark_seen(p, ranges, seen);
    const uint32_t* words = weights_ + static_cast<int64_t>(row) * kMostPairs;
    float* acc = acc_ + row * job_.acc_stride;
    for (int i = pairs.begin; i < pairs.end; ++i) {
      if (seen[i] == 0) continue;
      const __m512i mask = _mm512_set1_epi32(static_cast<int>(seen[i])),
                    weight = _mm512_and_si512(_mm512_set1_epi32(static_cast<int>(words[i])), mask);
      for (int64_t c = 0; c < padded_; c += 16) {
        const __m512i v = _mm512_and_si512(_mm512_loadu_si512(values_ + i * padded_ + c), mask);
        _mm512_storeu_ps(acc + c, dot_pairs(_mm512_loadu_ps(acc + c), weight, v));
      }
    }
  }

 protected:
  static constexpr int kMostPairs = split_layout::kMostPairs;

  int element(int c) const { return dense_ ? c + offset_ : element_[c]; }
  Span pairs_of(const Span& span) const { return {element(span.begin) / 2, element(span.end - 1) / 2 + 1}; }

  // Rounds weights to bf16, each at the place of its key.
  void place_weights(const float* p, const Spans& spans, uint16_t* to) const {
    for (const Span& span : spans) {
      if (!dense_) {
        for (int c = span.begin; c < span.end; ++c) to[element(c)] = to_bf16(p[c]).bits;
        continue;
      }
      for (int c = span.begin; c < span.end; c += 16)
        _mm256_mask_storeu_epi16(to + element(c), static_cast<__mmask16>(0xffff >> std::max(0, c + 16 - span.end)),
                                 load_bf16(p + c));
    }
  }

  // Marks halves of the words of pairs whose keys a row sees, by its visible columns and, if any, its weights.
  Span mark_seen(const float* p, const Spans& ranges, uint32_t* seen) const {
    Span pairs{kMostPairs, 0};
    for (const Span& range : ranges) {
      for (int c = range.begin; c < range.end; ++c)
        if (!p || !marked_hidden(p[c])) seen[element(c) / 2] |= element(c) % 2 ? 0xffff0000u : 0x0000ffffu;
      pairs = {std::min(pairs.begin, pairs_of(range).begin), pairs_of(range).end};
    }
    return pairs;
  }

  bool values_finite_ = true;  // of those packed

  // Values of pairs [begin, end).
  void pack_values_of(int begin, int end) {
    for (int i = begin; i < end; ++i) {
      const DType low = types_[2 * i], high = types_[2 * i + 1];
      const bool same = !rows_[2 * i] || !rows_[2 * i + 1] || low == high;
      const DType type = rows_[2 * i] ? low : high;
      if (!same) {
        pack_wide_pair(i);
      } else if (type == DType::kF32) {
        pack_pair<float>(i, rows_ + 2 * i);
      } else if (type == DType::kF16) {
        pack_pair<F16>(i, rows_ + 2 * i);
      } else if (type == DType::kBF16) {
        pack_pair<BF16>(i, rows_ + 2 * i);
      } else {
        pack_wide_pair(i);
      }
    }
  }

  const SplitJob& job_;
  JobKeys keys_;
  uint32_t *values_, *weights_;
  float *strip_ = nullptr, *acc_ = nullptr;
  bool dense_ = true;
  int64_t padded_;

 private:
  void pair_keys() {
    dense_ = !job_.k_position || job_.k_position[job_.cols - 1] - job_.k_position[0] == job_.cols - 1;
    const int64_t first = job_.k_position ? job_.k_position[0] : job_.first_position;
    offset_ = static_cast<int>(first % 2);
    elements_ = job_.cols + 2;
    if (dense_) return;
    int next = 0;  // element after the last
    for (int c = 0; c < job_.cols; ++c) {
      const int position = job_.k_position[c];
      const bool partner = position % 2 == 1 && c > 0 && job_.k_position[c - 1] == position - 1;
      if (!partner) next = (next + 1) / 2 * 2 + position % 2;
      element_[c] = static_cast<int16_t>(next++);
    }
    elements_ = next + 1;
  }

  void place_keys() {
    dense_ = !job_.k_position || job_.k_position[job_.cols - 1] - job_.k_position[0] == job_.cols - 1;
    const int64_t first = job_.k_position ? job_.k_position[0] : job_.first_position;
    offset_ = static_cast<int>(first % kSplitPositions);
    elements_ = static_cast<int>(kSplitPositions);
    for (int c = 0; c < job_.cols && !dense_; ++c)
      element_[c] = static_cast<int16_t>(job_.k_position[c] % kSplitPositions);
  }

  void find_values() {
    std::fill_n(rows_, elements_, nullptr);
    keys_.each_run(0, job_.cols, [&](const KeyRun& run, int64_t row, int col, int count) {
      for (int i = 0; i < count; ++i) {
        rows_[element(col + i)] = run.values().row(row + i);
        types_[element(col + i)] = run.v_type;
      }
    });
  }

  void pack(const Span& pairs) {
    constexpr int kChunk = 32;
    for (int chunk = pairs.begin / kChunk; chunk * kChunk < pairs.end; ++chunk) {
      if (packed_values_ >> chunk & 1) continue;
      packed_values_ |= 1u << chunk;
      pack_values_of(chunk * kChunk, std::min((chunk + 1) * kChunk, element(job_.cols - 1) / 2 + 1));
    }
  }

  // Of values of two types, or coded ones.
  void pack_wide_pair(int pair) {
    alignas(64) float wide[2][512];
    const void* rows[2] = {};
    for (int i = 0; i < 2; ++i) {
      const void* row = rows_[2 * pair + i];
      if (!row) continue;
      JobKeys::typed_values(types_[2 * pair + i], row, job_.dv,
                            [&](const auto v) { pack_values(v, 0, 1, job_.dv, job_.dv, wide[i]); });
      rows[i] = wide[i];
    }
    pack_pair<float>(pair, rows);
  }

  template <class T>
  void pack_pair(int pair, const void* const* rows) {
    const T *low = static_cast<const T*>(rows[0]), *high = static_cast<const T*>(rows[1]);
    uint32_t* to = values_ + pair * padded_;
    int64_t c = 0;
    if (low && high)
      for (; c + 16 <= job_.dv; c += 16) put(join(load_bf16(low + c), load_bf16(high + c)), to + c);
    for (; c < padded_; c += 16) {
      alignas(64) uint16_t half[2][16] = {};
      for (int64_t j = c; j < std::min<int64_t>(job_.dv, c + 16); ++j) {
        if (low) half[0][j - c] = to_bf16(scalar_f32(low[j])).bits;
        if (high) half[1][j - c] = to_bf16(scalar_f32(high[j])).bits;
      }
      put(join(_mm256_load_si256(reinterpret_cast<const __m256i*>(half[0])),
               _mm256_load_si256(reinterpret_cast<const __m256i*>(half[1]))),
          to + c);
    }
  }
  HWY_INLINE void put(__m512i words, uint32_t* to) {
    const __m512i exponent = _mm512_set1_epi16(0x7f80);
    values_finite_ &= _mm512_cmpeq_epi16_mask(_mm512_and_si512(words, exponent), exponent) == 0;
    _mm512_storeu_si512(to, words);
  }
  static HWY_INLINE __m512i join(__m256i low, __m256i high) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
  }

  void add(int row, int rows, const Span& pairs) {
    pack(pairs);
    const uint32_t* p = weights_ + static_cast<int64_t>(row) * kMostPairs + pairs.begin;
    const uint32_t* v = values_ + pairs.begin * padded_;
    int64_t c = 0;
    for (; c + 64 <= padded_; c += 64) add_columns<4>(row, rows, p, v + c, pairs.end - pairs.begin, c);
    if (c + 32 <= padded_) add_columns<2>(row, rows, p, v + c, pairs.end - pairs.begin, c), c += 32;
    if (c < padded_) add_columns<1>(row, rows, p, v + c, pairs.end - pairs.begin, c);
  }

  template <int kCols>
  void add_columns(int row, int rows, const uint32_t* p, const uint32_t* v, int64_t count, int64_t c) const {
    float* out = acc_ + row * job_.acc_stride + c;
    for_rows(rows, [&](auto n) {
      multiply_pairs<n, kCols, false>(p, kMostPairs, v, padded_, count, out, job_.acc_stride, 1);
    });
  }

  const void** rows_;  // of values, by element; null where there is no key
  int offset_ = 0, elements_ = 0;
  uint32_t packed_values_ = 0;
  int16_t element_[kStripCols];
  DType types_[2 * kMostPairs + 2];  // of rows_
};

using Bf16Products = Products<Bf16Keys, Bf16Values>;

}  // namespace HWY_NAMESPACE
}  // namespace attend
