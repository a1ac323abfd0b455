// Products of a split by AMX tiles in bytes, 32 rows at a time: the integers of products_int8-inl.h, whose sums are
// exact and become floats in the same order, so bits are those of AVX512_VNNI. See math-inl.h on how it is included.
//
// A tile is 64 elements of D, or the 64 keys of a block of weights. Zeros fill it up in the first operand, so it makes
// no difference what lies beside them in the second.
#include <immintrin.h>

#include <algorithm>

namespace attend {
namespace HWY_NAMESPACE {

class TileOperands : public ByteOperands {
 public:
  static constexpr int kMostRows = kMostBlockRows;

  explicit TileOperands(const SplitJob& job) : ByteOperands(job, padded_words(job)) {}

  static bool keeps(const SplitJob&, int rows) { return rows > kMostBlockRows; }
  static int64_t panels_bytes(const SplitJob& job, int rows) {
    return padded_words(job) * (keeps(job, rows) ? kStripCols : kPanelCols) * int64_t{4};
  }

  void take_query(const float* q, int row) {
    ByteOperands::take_query(q, row);
    std::fill(queries_ + row * words_ + used_, queries_ + (row + 1) * words_, 0u);
  }

  int steps() const { return static_cast<int>(words_ / kTileRows) * (kPanelCols / kTileWide); }

  void multiply(int row, int rows, const uint32_t* panel, int cols, const float* scales, const float* shift,
                int64_t shift_stride, float* out, int64_t out_stride) const {
    multiply(row, rows, panel, cols, scales, shift, shift_stride, out, out_stride, [] {});
  }
  // Calls between() between products.
  template <class Between>
  void multiply(int row, int rows, const uint32_t* panel, int cols, const float* scales, const float* shift,
                int64_t shift_stride, float* out, int64_t out_stride, Between between) const {
    if (rows <= kGroupRows)
      return ByteOperands::multiply(row, rows, panel, cols, scales, shift, shift_stride, out, out_stride);
    for (int c = 0; c < cols; c += kTileWide) {
      alignas(64) int32_t sums[kMostRows * kTileWide];
      const bool both = c + kTileRows < cols;
      if (rows > kTileRows) {
        both ? sum_tiles<2, 2>(row, panel + c, sums, between) : sum_tiles<2, 1>(row, panel + c, sums, between);
      } else {
        both ? sum_tiles<1, 2>(row, panel + c, sums, between) : sum_tiles<1, 1>(row, panel + c, sums, between);
      }
      const int count = both ? kTileWide : kTileRows;
      for (int r = 0; r < rows; ++r) {
        const __m512i first = _mm512_set1_epi32(first_sum_[row + r]);
        const __m512 scale = _mm512_set1_ps(query_scale_[row + r]), add = _mm512_set1_ps(shift[r * shift_stride]);
        for (int i = 0; i < count; i += 16) {
          const __m512i sum = _mm512_add_epi32(first, _mm512_load_si512(sums + r * count + i));
          const __m512 factor = _mm512_mul_ps(scale, _mm512_loadu_ps(scales + c + i));
          _mm512_storeu_ps(out + r * out_stride + c + i, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), factor, add));
        }
      }
    }
  }

 private:
  static int64_t padded_words(const SplitJob& job) { return (job.d + kTileBytes - 1) / kTileBytes * kTileRows; }

  template <int kRows, int kCols, class Between>
  HWY_INLINE void sum_tiles(int row, const uint32_t* panel, int32_t* sums, Between between) const {
    zero_tiles<kRows, kCols>();
    for (int64_t k = 0; k < words_; k += kTileRows) {
      multiply_tiles<TilesOfSignedAndUnsigned, kRows, kCols>(queries_ + row * words_ + k, words_,
                                                             panel + k * kPanelCols, kPanelCols);
      between();
    }
    store_tiles<kRows, kCols>(sums, kCols * 16);
  }
};

class AmxInt8Values : public Int8Values {
 public:
  using Int8Values::Int8Values;

  void add(int row, int rows, const Spans& spans) {
    if (rows <= kGroupRows) return Int8Values::add(row, rows, spans);
    int blocks[kWeightBlocks], count = 0;
    for (int b = 0; b < kWeightBlocks; ++b)
      if (!spans.within(blocks_.begin(b), blocks_.end(b)).empty()) blocks[count++] = b;
    for (int i = 0; i < count; i += kChunk)
      for (int64_t c = 0; c < padded_; c += kTileWide) {
        const int chunk = std::min(kChunk, count - i);
        const bool both = c + kTileRows < padded_;
        if (rows > kTileRows) {
          both ? add_tiles<2, 2>(row, rows, blocks + i, chunk, c) : add_tiles<2, 1>(row, rows, blocks + i, chunk, c);
        } else {
          both ? add_tiles<1, 2>(row, rows, blocks + i, chunk, c) : add_tiles<1, 1>(row, rows, blocks + i, chunk, c);
        }
      }
  }

 private:
  static constexpr int kChunk = 4;  // blocks whose sums wait in the first cache
  static_assert(kBlockQuads == kTileRows);

  // Columns from c on, of blocks in ascending order.
  template <int kRows, int kCols>
  void add_tiles(int row, int rows, const int* blocks, int count, int64_t c) {
    constexpr int kSums = kRows * kTileRows * kCols * 16;
    alignas(64) int32_t sums[kChunk * kSums];
    for (int i = 0; i < count; ++i) {
      zero_tiles<kRows, kCols>();
      multiply_tiles<TilesOfUnsignedAndSigned, kRows, kCols>(weights_ + row * kMostQuads + blocks[i] * kBlockQuads,
                                                             kMostQuads,
                                                             values_ + blocks[i] * kBlockQuads * padded_ + c, padded_);
      store_tiles<kRows, kCols>(sums + i * kSums, kCols * 16);
    }
    for (int r = 0; r < rows; ++r) {
      float* to = acc_ + (row + r) * job_.acc_stride + c;
      __m512 acc[kCols];
#pragma GCC unroll 2
      for (int v = 0; v < kCols; ++v) acc[v] = _mm512_loadu_ps(to + v * 16);
      for (int i = 0; i < count; ++i) {
        const __m512 scale = _mm512_set1_ps(blocks_.scales(row + r)[blocks[i]]);
#pragma GCC unroll 2
        for (int v = 0; v < kCols; ++v) {
          const __m512i sum = _mm512_load_si512(sums + i * kSums + (r * kCols + v) * 16);
          acc[v] = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(sum), acc[v]);
        }
      }
#pragma GCC unroll 2
      for (int v = 0; v < kCols; ++v) _mm512_storeu_ps(to + v * 16, acc[v]);
    }
  }
};

using AmxInt8Products = TiledProducts<QuantisedKeys<TileOperands>, AmxInt8Values>;
using AmxInt8KeysProducts = TiledProducts<QuantisedKeys<TileOperands>, AmxValues>;

}  // namespace HWY_NAMESPACE
}  // namespace attend
