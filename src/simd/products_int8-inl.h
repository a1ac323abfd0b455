// Products of int8 operands by AVX512_VNNI: four neighbouring elements of D, and four neighbouring keys, share 32-bit
// words. See products_quantised-inl.h on the operands and math-inl.h on how it is included.
#include <immintrin.h>

#include <algorithm>

namespace attend {
namespace HWY_NAMESPACE {

// Up to 16 elements as f32, zeros in place of what `mask` leaves out.
HWY_INLINE __m512 load_some(const float* p, __mmask16 mask) {
  return _mm512_maskz_loadu_ps(mask, p);
}
HWY_INLINE __m512 load_some(const F16* p, __mmask16 mask) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p));
}
HWY_INLINE __m512 load_some(const BF16* p, __mmask16 mask) {
  const __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

// A row of integers: what they are multiplied by, and their sum.
struct IntegerRow {
  float scale;
  int32_t sum;
};

// Rounds a row, less `mean` if kMean, to integers times one scale, filled up to whole words with zeros, all 128 larger
// if kUnsigned. The scale is that of Quantiser::quantise.
template <bool kMean, bool kUnsigned, class T>
HWY_INLINE IntegerRow to_integers(const T* HWY_RESTRICT x, const float* HWY_RESTRICT mean, int64_t count,
                                  int8_t* HWY_RESTRICT to) {
  const int64_t whole = count / 16 * 16;
  const __mmask16 rest = static_cast<__mmask16>((1u << (count - whole)) - 1), all = 0xffff;
  auto load = [&](int64_t i, __mmask16 mask) HWY_ATTR {
    const __m512 v = load_some(x + i, mask);
    return kMean ? _mm512_sub_ps(v, _mm512_loadu_ps(mean + i)) : v;
  };
  // Magnitudes order as their bits do, with infinities and NaN on top.
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  auto bits_of = [&](__m512 v) HWY_ATTR { return _mm512_and_si512(_mm512_castps_si512(v), magnitude); };
  __m512i top = _mm512_setzero_si512(), other = top;
  int64_t i = 0;
  for (; i + 32 <= whole; i += 32) {
    top = _mm512_max_epu32(top, bits_of(load(i, all)));
    other = _mm512_max_epu32(other, bits_of(load(i + 16, all)));
  }
  if (i < whole) top = _mm512_max_epu32(top, bits_of(load(i, all)));
  if (rest) other = _mm512_max_epu32(other, bits_of(load(whole, rest)));
  const uint32_t bits = _mm512_reduce_max_epu32(_mm512_max_epu32(top, other));
  const float largest = std::bit_cast<float>(bits);
  const int64_t bytes = (count + 3) / 4 * 4;
  const int8_t zero = kUnsigned ? -128 : 0;
  if (bits >= 0x7f800000u || largest < 0x1p-100f) {
    std::fill_n(to, bytes, zero);
    return {bits >= 0x7f800000u ? std::numeric_limits<float>::quiet_NaN() : 0.0f, 0};
  }
  const __m512 factor = _mm512_set1_ps(127 / largest);
  const __m512i offset = _mm512_set1_epi8(zero);
  __m512i sum = _mm512_setzero_si512();
  auto integers = [&](int64_t k, __mmask16 mask) HWY_ATTR {
    const __m512i v = _mm512_cvtps_epi32(_mm512_mul_ps(load(k, mask), factor));
    sum = _mm512_add_epi32(sum, v);
    return v;
  };
  // Words of four vectors, 16 bytes of each in turn.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  for (i = 0; i + 64 <= whole; i += 64) {
    const __m512i low = _mm512_packs_epi32(integers(i, all), integers(i + 16, all));
    const __m512i high = _mm512_packs_epi32(integers(i + 32, all), integers(i + 48, all));
    _mm512_storeu_si512(to + i,
                        _mm512_xor_si512(offset, _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low, high))));
  }
  auto store = [&](int64_t k, __mmask16 from, __mmask16 mask) HWY_ATTR {
    _mm_mask_storeu_epi8(to + k, mask,
                         _mm_xor_si128(_mm512_castsi512_si128(offset), _mm512_cvtepi32_epi8(integers(k, from))));
  };
  for (; i < whole; i += 16) store(i, all, all);
  if (rest) store(whole, rest, static_cast<__mmask16>((1u << (bytes - whole)) - 1));
  return {largest / 127, _mm512_reduce_add_epi32(sum)};
}

// The same for up to 16 rows of any type, `to_stride` bytes apart, after a turn if `turn`: calls done(row, IntegerRow).
template <bool kUnsigned, class Rows, class Done>
HWY_INLINE void to_integer_rows(Rows rows, int64_t stride, int count, int64_t width, const float* mean, bool turn,
                                int8_t* to, int64_t to_stride, Done done) {
  auto take = [&](const auto* x, int r) HWY_ATTR {
    done(r, mean ? to_integers<true, kUnsigned>(x, mean, width, to + r * to_stride)
                 : to_integers<false, kUnsigned>(x, mean, width, to + r * to_stride));
  };
  if constexpr (std::is_pointer_v<Rows>) {
    if (!turn) {
      for (int r = 0; r < count; ++r) take(rows + r * stride, r);
      return;
    }
  }
  alignas(64) float wide[16 * 512];
  const int64_t padded = padded_dv(width);
  pack_values(rows, stride, count, width, padded, wide);
  for (int r = 0; r < count; ++r) {
    if (turn) Turn::apply(wide + r * padded, width);
    take(static_cast<const float*>(wide + r * padded), r);
  }
}

// Words of rows, broadcast, times kCols vectors a word: of queries (signed) with keys (unsigned, 128 too large, which
// first_sum takes back), out = row_scale key_scale sum; of weights (unsigned) with values (signed), out += row_scale
// sum; the first plus `shift`.
template <int kRows, int kCols, bool kKeys>
HWY_INLINE void multiply_quads(const uint32_t* HWY_RESTRICT x, int64_t x_stride, const uint32_t* HWY_RESTRICT w,
                               int64_t w_stride, int64_t count, const int32_t* HWY_RESTRICT first_sum,
                               const float* HWY_RESTRICT row_scale, int64_t row_scale_stride,
                               const float* HWY_RESTRICT key_scale, const float* HWY_RESTRICT shift,
                               int64_t shift_stride, float* HWY_RESTRICT out, int64_t out_stride) {
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
      _mm512_storeu_ps(to, kKeys ? _mm512_fmadd_ps(sum, _mm512_mul_ps(scale, _mm512_loadu_ps(key_scale + v * 16)),
                                                   _mm512_set1_ps(shift[r * shift_stride]))
                                 : _mm512_fmadd_ps(scale, sum, _mm512_loadu_ps(to)));
    }
  }
}

// Operands as bytes, those of keys unsigned, 128 too large.
class ByteOperands {
 public:
  using Word = uint32_t;
  static constexpr int kPanelCols = 64;
  static constexpr int kMostRows = kGroupRows;  // multiplied at once

  explicit ByteOperands(const SplitJob& job) : ByteOperands(job, words_of(job)) {}
  int64_t words() const { return words_; }
  static bool keeps(const SplitJob&, int rows) { return rows > kBlockRows; }
  static int64_t panels_bytes(const SplitJob& job, int rows) {
    return words_of(job) * (keeps(job, rows) ? kStripCols : kPanelCols) * int64_t{4};
  }

  void take_query(const float* q, int row) {
    to_integer_rows<false>(q, job_.d, 1, job_.d, nullptr, is_turned(job_.compute),
                           reinterpret_cast<int8_t*>(queries_ + row * words_), 4 * words_, [&](int, IntegerRow taken) {
                             query_scale_[row] = job_.score_scale * norm_of(job_) * taken.scale;
                             first_sum_[row] = -128 * taken.sum;
                           });
  }

  template <class Rows>
  void pack(Rows k, int64_t stride, int count, const float* mean, float* scales, uint32_t* panel) const {
    alignas(64) uint32_t rows[16 * kMostWords];
    to_integer_rows<true>(k, stride, count, job_.d, mean, is_turned(job_.compute), reinterpret_cast<int8_t*>(rows),
                          4 * used_, [&](int r, IntegerRow taken) { scales[r] = taken.scale; });
    // Words move as floats do: the transposition is the same.
    pack_keys(reinterpret_cast<const float*>(rows), used_, count, used_, reinterpret_cast<float*>(panel), kPanelCols);
  }

  void multiply(int row, int rows, const uint32_t* panel, int cols, const float* scales, const float* shift,
                int64_t shift_stride, float* out, int64_t out_stride) const {
    for_rows(rows, [&](auto n) {
      for_vectors(cols / 16, [&](auto vectors) {
        multiply_quads<n, vectors, true>(queries_ + row * words_, words_, panel, kPanelCols, used_, first_sum_ + row,
                                         query_scale_ + row, 1, scales, shift, shift_stride, out, out_stride);
      });
    });
  }

 protected:
  // Rows of `words` words, of which words_of(job) are used.
  ByteOperands(const SplitJob& job, int64_t words)
      : job_(job),
        queries_(reinterpret_cast<uint32_t*>(job.scratch + split_layout::layout(job.d, job.dv).operands)),
        used_(words_of(job)),
        words_(words) {}

  static int64_t words_of(const SplitJob& job) { return (job.d + 3) / 4; }

  const SplitJob& job_;
  uint32_t* queries_;
  int64_t used_, words_;
  float query_scale_[kMostBlockRows];
  int32_t first_sum_[kMostBlockRows];

 private:
  static constexpr int kMostWords = 512 / 4;
};

class Int8Values {
 public:
  static constexpr bool kShortWeights = true, kOverwrites = false;

  Int8Values(const SplitJob& job, int) : job_(job), keys_(job), blocks_(job), padded_(padded_dv(job.dv)) {
    const split_layout::Layout layout = split_layout::layout(job.d, job.dv);
    values_ = reinterpret_cast<uint32_t*>(job.scratch + layout.values);
    weights_ = reinterpret_cast<uint32_t*>(job.scratch + layout.operands) + kMostBlockRows * kMostWords;
  }

  void take_block(int first, float* strip) {
    strip_ = strip;
    acc_ = job_.acc + first * job_.acc_stride;
  }

  void take_weights(int row, int rows, const Spans& spans) {
    for (int b = 0; b < kWeightBlocks; ++b) {
      const Span part = spans.within(blocks_.begin(b), blocks_.end(b));
      if (part.empty()) continue;
      pack(b);
      // Whether all weights of the block are there: then they stay in registers.
      const bool whole = part.end - part.begin == kWeightBlock && blocks_.values_finite() &&
                         std::any_of(spans.begin(), spans.end(),
                                     [&](const Span& s) { return s.begin <= part.begin && part.end <= s.end; });
      for (int r = row; r < row + rows; ++r) {
        const float* p = strip_ + static_cast<int64_t>(r) * kStripStride;
        uint8_t* to = reinterpret_cast<uint8_t*>(weights_ + r * kMostQuads + b * kBlockQuads);
        if (whole && take_whole(p + part.begin, r, b, to)) continue;
        _mm512_storeu_si512(to, _mm512_setzero_si512());
        blocks_.take(p, r, b, spans, [&](int c, Vec x, int n) {
          _mm512_mask_cvtepi32_storeu_epi8(to + (c - blocks_.begin(b)), static_cast<__mmask16>(0xffff >> (16 - n)),
                                           _mm512_cvtps_epi32(x.raw));
        });
      }
    }
  }

  void add(int row, int rows, const Spans& spans) {
    for (int b = 0; b < kWeightBlocks; ++b) {
      const int begin = blocks_.begin(b);
      const Span part = spans.within(begin, blocks_.end(b));
      if (part.empty()) continue;
      const int first = b * kBlockQuads + (part.begin - begin) / 4, end = b * kBlockQuads + (part.end - begin + 3) / 4;
      for (int64_t c = 0; c < padded_;) {
        const int64_t vectors = std::min<int64_t>(4, (padded_ - c) / 16);
        for_rows(rows, [&](auto n) {
          for_vectors(vectors, [&](auto count) {
            multiply_quads<n, count, false>(weights_ + row * kMostQuads + first, kMostQuads,
                                            values_ + first * padded_ + c, padded_, end - first, nullptr,
                                            blocks_.scales(row) + b, kWeightBlocks, nullptr, nullptr, 0,
                                            acc_ + row * job_.acc_stride + c, job_.acc_stride);
          });
        });
        c += vectors * 16;
      }
    }
  }

  // What a row does not see has weight 0 and values that are finite.
  void add_seen(int row, const Spans& ranges) { add(row, 1, ranges); }

 protected:
  static constexpr int kBlockQuads = kWeightBlock / 4, kMostQuads = kWeightBlocks * kBlockQuads;

  const SplitJob& job_;
  JobKeys keys_;
  WeightBlocks blocks_;
  uint32_t *values_, *weights_;
  float *strip_ = nullptr, *acc_ = nullptr;
  int64_t padded_;

 private:
  static constexpr int kMostWords = 512 / 4;

  // What WeightBlocks::take() does, for 64 weights; false if one of them is not finite.
  bool take_whole(const float* p, int row, int b, uint8_t* to) {
    const float* scales = blocks_.value_scales() + blocks_.begin(b);
    auto weighted = [&](int i) HWY_ATTR { return _mm512_mul_ps(_mm512_loadu_ps(p + i), _mm512_loadu_ps(scales + i)); };
    const __m512 x0 = weighted(0), x1 = weighted(16), x2 = weighted(32), x3 = weighted(48);
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    auto bits_of = [&](__m512 v) HWY_ATTR { return _mm512_and_si512(_mm512_castps_si512(v), magnitude); };
    const uint32_t bits = _mm512_reduce_max_epu32(
        _mm512_max_epu32(_mm512_max_epu32(bits_of(x0), bits_of(x1)), _mm512_max_epu32(bits_of(x2), bits_of(x3))));
    if (bits >= 0x7f800000u) return false;
    const float largest = std::bit_cast<float>(bits);
    const bool some = largest >= 0x1p-100f;
    blocks_.scales(row)[b] = some ? largest / 255 : 0.0f;
    const __m512 factor = _mm512_set1_ps(some ? 255 / largest : 0.0f);
    auto store = [&](int i, __m512 v) HWY_ATTR {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                       _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(v, factor))));
    };
    store(0, x0), store(16, x1), store(32, x2), store(48, x3);
    return true;
  }

  // Values of a block: four neighbouring keys share words.
  void pack(int b) {
    if (packed_values_ >> b & 1) return;
    packed_values_ |= 1u << b;
    const int begin = blocks_.begin(b), end = blocks_.end(b);
    alignas(64) int8_t rows[kWeightBlock * 512];
    if (job_.dv % 16 != 0) std::fill_n(rows, (end - begin) * padded_, int8_t{0});
    keys_.each_value_run(begin, end, [&](auto v, int64_t stride, int col, int count) {
      for (int i = 0; i < count; i += 16)
        to_integer_rows<false>(v + i * stride, stride, std::min(16, count - i), job_.dv, nullptr, false,
                               rows + (col + i - begin) * padded_, padded_,
                               [&](int r, IntegerRow taken) { blocks_.value_scales()[col + i + r] = taken.scale; });
    });
    blocks_.take_values(begin, end);
    const int quads = (end - begin + 3) / 4;
    std::fill_n(rows + (end - begin) * padded_, (4 * quads - (end - begin)) * padded_, int8_t{0});
    for (int i = 0; i < quads; ++i)
      for (int64_t c = 0; c < padded_; c += 16) {
        auto row = [&](int r) HWY_ATTR {
          const int8_t* from = rows + (4 * i + r) * padded_ + c;
          return _mm512_slli_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))),
                                   static_cast<unsigned>(8 * r));
        };
        _mm512_storeu_si512(values_ + (b * kBlockQuads + i) * padded_ + c,
                            _mm512_or_si512(_mm512_or_si512(row(0), row(1)), _mm512_or_si512(row(2), row(3))));
      }
  }

  uint32_t packed_values_ = 0;
};

using Int8Products = Products<QuantisedKeys<ByteOperands>, Int8Values>;
using Int8KeysProducts = Products<QuantisedKeys<ByteOperands>, Bf16Values>;

}  // namespace HWY_NAMESPACE
}  // namespace attend
