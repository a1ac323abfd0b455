// Products of int8 operands by AVX512_VNNI: four neighbouring elements of D, and four neighbouring keys, share 32-bit
// words. See products_quantised-inl.h on the operands and math-inl.h on how it is included.
#include <immintrin.h>

#include <algorithm>

namespace attend {
namespace HWY_NAMESPACE {

// 16 bytes of integers from 16 floats that hold them.
HWY_INLINE __m128i to_bytes(__m512 x) {
  return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x));
}

// Words of rows, broadcast, times kCols vectors a word: of queries (signed) with keys (unsigned, 128 too large, which
// first_sum takes back), out = row_scale key_scale sum; of weights (unsigned) with values (signed), out += row_scale
// sum.
template <int kRows, int kCols, bool kKeys>
HWY_INLINE void multiply_quads(const uint32_t* HWY_RESTRICT x, int64_t x_stride, const uint32_t* HWY_RESTRICT w,
                               int64_t w_stride, int64_t count, const int32_t* HWY_RESTRICT first_sum,
                               const float* HWY_RESTRICT row_scale, int64_t row_scale_stride,
                               const float* HWY_RESTRICT key_scale, float* HWY_RESTRICT out, int64_t out_stride) {
  // GCC keeps arrays of this type in registers, of __m512i it does not.
  using Sum = __v16si;
  Sum sums[kRows][kCols];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kCols; ++v) sums[r][v] = reinterpret_cast<Sum>(_mm512_set1_epi32(kKeys ? first_sum[r] : 0));
  for (int64_t k = 0; k < count; ++k) {
    __m512i b[kCols];
#pragma GCC unroll 8
    for (int v = 0; v < kCols; ++v) b[v] = _mm512_loadu_si512(w + k * w_stride + v * 16);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512i a = _mm512_set1_epi32(static_cast<int>(x[r * x_stride + k]));
#pragma GCC unroll 8
      for (int v = 0; v < kCols; ++v) {
        const __m512i sum = reinterpret_cast<__m512i>(sums[r][v]);
        sums[r][v] =
            reinterpret_cast<Sum>(kKeys ? _mm512_dpbusd_epi32(sum, b[v], a) : _mm512_dpbusd_epi32(sum, a, b[v]));
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const __m512 scale = _mm512_set1_ps(row_scale[r * row_scale_stride]);
#pragma GCC unroll 8
    for (int v = 0; v < kCols; ++v) {
      float* to = out + r * out_stride + v * 16;
      const __m512 sum = _mm512_cvtepi32_ps(reinterpret_cast<__m512i>(sums[r][v]));
      _mm512_storeu_ps(to, kKeys ? _mm512_mul_ps(sum, _mm512_mul_ps(scale, _mm512_loadu_ps(key_scale + v * 16)))
                                 : _mm512_fmadd_ps(scale, sum, _mm512_loadu_ps(to)));
    }
  }
}

class Int8Products {
 public:
  Int8Products(const SplitJob& job, int rows)
      : job_(job),
        rows_(job),
        panels_(job.scratch + split_layout::layout(job.d, job.dv).panels, rows > kBlockRows),
        padded_(padded_dv(job.dv)),
        words_((job.d + 3) / 4) {
    const split_layout::Layout layout = split_layout::layout(job.d, job.dv);
    values_ = reinterpret_cast<uint32_t*>(job.scratch + layout.values);
    queries_ = reinterpret_cast<uint32_t*>(job.scratch + layout.operands);
    weights_ = queries_ + kBlockRows * kMostWords;
  }

  void take_block(int first, int count, float* strip) {
    strip_ = strip;
    acc_ = job_.acc + first * job_.acc_stride;
    alignas(64) float q[512];
    for (int r = 0; r < count; ++r) {
      std::copy_n(job_.q + static_cast<int64_t>(first + r) * job_.d, job_.d, q);
      query_scale_[r] = rows_.take_query(q);
      int8_t* to = reinterpret_cast<int8_t*>(queries_ + r * words_);
      to_signed(q, job_.d, to);
      // Keys are unsigned, 128 too large.
      int sum = 0;
      for (int i = 0; i < 4 * words_; ++i) sum += to[i];
      first_sum_[r] = -128 * sum;
    }
  }

  int panel_cols() const { return kPanelCols; }

  void take_panel(int panel) {
    first_col_ = panel * kPanelCols;
    if (!panels_.take(panel, words_ * kPanelCols)) return;
    const int end = first_col_ + kPanelCols;
    if (end > job_.cols) std::fill_n(panels_.at(), words_ * kPanelCols, 0u);
    rows_.each_keys(first_col_, std::min(end, job_.cols), [&](const float* k, int64_t stride, int col, int count) {
      alignas(64) uint32_t bytes[16 * kMostWords];
      for (int r = 0; r < count; ++r) to_unsigned(k + r * stride, bytes + r * words_);
      // Words move as floats do: the transposition is the same.
      pack_keys(reinterpret_cast<const float*>(bytes), words_, count, words_,
                reinterpret_cast<float*>(panels_.at() + (col - first_col_)), kPanelCols);
    });
  }

  void scores(int row, int rows, int begin, int end) const {
    begin = begin / 16 * 16, end = (end + 15) / 16 * 16;
    float* s = strip_ + static_cast<int64_t>(row) * kStripCols + first_col_ + begin;
    for_rows(rows, [&](auto n) {
      for_vectors((end - begin) / 16, [&](auto vectors) {
        multiply_quads<n, vectors, true>(queries_ + row * words_, words_, panels_.at() + begin, kPanelCols, words_,
                                         first_sum_ + row, query_scale_ + row, 1,
                                         rows_.key_scales() + first_col_ + begin, s, kStripCols);
      });
    });
  }

  void take_weights(int row, int rows, const Spans& spans) {
    for (int b = 0; b < kWeightBlocks; ++b)
      if (const Span part = spans.within(rows_.block_begin(b), rows_.block_end(b)); !part.empty()) pack(b);
    for (int r = row; r < row + rows; ++r) {
      uint8_t* to = reinterpret_cast<uint8_t*>(weights_ + r * kMostQuads);
      for (int i = 0; i < 4 * kMostQuads; i += 64) _mm512_storeu_si512(to + i, _mm512_setzero_si512());
      rows_.take_weights(strip_ + static_cast<int64_t>(r) * kStripCols, r, spans, [&](int b, int c, Vec x, int n) {
        const __m512i integers = _mm512_cvtps_epi32(x.raw);
        _mm512_mask_cvtepi32_storeu_epi8(to + b * kWeightBlock + (c - rows_.block_begin(b)),
                                         static_cast<__mmask16>(0xffff >> (16 - n)), integers);
      });
    }
  }

  void add(int row, int rows, const Spans& spans) {
    for (int b = 0; b < kWeightBlocks; ++b) {
      const int begin = rows_.block_begin(b);
      const Span part = spans.within(begin, rows_.block_end(b));
      if (part.empty()) continue;
      const int first = b * kBlockQuads + (part.begin - begin) / 4, end = b * kBlockQuads + (part.end - begin + 3) / 4;
      for (int64_t c = 0; c < padded_;) {
        const int64_t vectors = std::min<int64_t>(4, (padded_ - c) / 16);
        for_rows(rows, [&](auto n) {
          for_vectors(vectors, [&](auto count) {
            multiply_quads<n, count, false>(weights_ + row * kMostQuads + first, kMostQuads,
                                            values_ + first * padded_ + c, padded_, end - first, nullptr,
                                            rows_.weight_scales(row) + b, kWeightBlocks, nullptr,
                                            acc_ + row * job_.acc_stride + c, job_.acc_stride);
          });
        });
        c += vectors * 16;
      }
    }
  }

  // What a row does not see has weight 0 and values that are finite.
  void add_seen(int row, const Spans& ranges) { add(row, 1, ranges); }

 private:
  static constexpr int kPanelCols = 64, kMostWords = 512 / 4;
  static constexpr int kBlockQuads = kWeightBlock / 4, kMostQuads = kWeightBlocks * kBlockQuads;

  // Elements as signed bytes, filled up with zeros to whole words.
  static void to_signed(const float* x, int64_t count, int8_t* to) {
    int64_t i = 0;
    for (; i + 16 <= count; i += 16)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), to_bytes(_mm512_loadu_ps(x + i)));
    for (; i < (count + 3) / 4 * 4; ++i) to[i] = i < count ? static_cast<int8_t>(x[i]) : int8_t{0};
  }
  void to_unsigned(const float* x, uint32_t* words) const {
    int8_t* bytes = reinterpret_cast<int8_t*>(words);
    to_signed(x, job_.d, bytes);
    for (int64_t i = 0; i < words_; ++i) words[i] ^= 0x80808080u;
  }

  void pack(int b) {
    if (packed_values_ >> b & 1) return;
    packed_values_ |= 1u << b;
    const int begin = rows_.block_begin(b), end = rows_.block_end(b);
    uint32_t* to = values_ + b * kBlockQuads * padded_;
    std::fill_n(to, (end - begin + 3) / 4 * padded_, 0u);
    rows_.each_values(begin, end, [&](const float* v, int64_t stride, int col, int count) {
      for (int i = 0; i < count; ++i) {
        const int key = col + i - begin;
        uint32_t* words = to + key / 4 * padded_;
        const __m128i shift = _mm_cvtsi32_si128(key % 4 * 8);
        const __m512i low = _mm512_set1_epi32(255);
        for (int64_t c = 0; c < padded_; c += 16) {
          // Elements beyond the width are zeros of the padding.
          const __m512i x = _mm512_and_si512(_mm512_cvtps_epi32(_mm512_loadu_ps(v + i * stride + c)), low);
          _mm512_storeu_si512(words + c, _mm512_or_si512(_mm512_loadu_si512(words + c), _mm512_sll_epi32(x, shift)));
        }
      }
    });
  }

  const SplitJob& job_;
  QuantisedRows rows_;
  Panels<uint32_t> panels_;
  uint32_t *values_, *queries_, *weights_;
  float *strip_ = nullptr, *acc_ = nullptr;
  int64_t padded_, words_;
  int first_col_ = 0;
  uint32_t packed_values_ = 0;
  float query_scale_[kBlockRows];
  int32_t first_sum_[kBlockRows];
};

}  // namespace HWY_NAMESPACE
}  // namespace attend
