// Weights of scores that pass by, 64 columns at a time, and never leave the first cache. See math-inl.h on how it is
// included.
#include <immintrin.h>

#include <algorithm>
#include <utility>

namespace attend {
namespace HWY_NAMESPACE {

// The softmax of a block of rows. While products find the scores of some columns, weights are made of those of the
// columns before. They can be, for they are relative to the largest score of the first 64 positions instead of all
// (RowWeights::shorten): exponents of f32 and bf16 have room for what is larger.
template <class Products>
class PassingWeights {
 public:
  static constexpr int kCols = 64, kStride = kCols + 16;  // a chunk; floats from row to row
  static_assert(kCols == kMaskCols);

  // Rows [first, first + count) of the job; `chunks`: [2, kMostBlockRows, kStride], aligned to 64 bytes. `steps`: times
  // that some() will be called for a chunk.
  PassingWeights(const RowWeights& weights, Products& products, int first, int count, int steps, float* chunks)
      : weights_(weights),
        products_(products),
        first_(first),
        count_(count),
        rows_of_a_step_((count + steps - 1) / steps),
        pending_(chunks),
        next_(chunks + kMostBlockRows * kStride),
        row_(count),
        new_rows_(~uint64_t{0} >> (64 - count)) {
    for (int r = 0; r < count; ++r) {
      const ColumnRanges& seen = weights.visible(first + r);
      const bool first_range = seen.a1 - seen.a0 > seen.b1 - seen.b0;
      all_see_.begin = std::max(all_see_.begin, first_range ? seen.a0 : seen.b0);
      all_see_.end = std::min(all_see_.end, first_range ? seen.a1 : seen.b1);
      top_[r] = kNegInf, offset_[r] = 0;
    }
    std::fill_n(sums_, count * 16, 0.0f);
    products.pass_weights();
  }

  // Where the next chunk's scores go.
  float* next() { return next_; }
  // They are there, of columns from `begin` on.
  void take(int begin) {
    rest();
    std::swap(pending_, next_);
    begin_ = begin, row_ = 0;
    if (weights_.changes_scores()) {
      Spans chunk;
      chunk.append({begin, begin + kCols});
      for (int r = 0; r < count_; ++r) weights_.finish_scores(first_ + r, pending_ + r * kStride - begin, chunk);
    } else if (begin < all_see_.begin || begin + kCols > all_see_.end || weights_.mask(first_)) {
      for (int r = 0; r < count_; ++r) hide(first_ + r, pending_ + r * kStride);
    }
    for (uint64_t rows = new_rows_; rows != 0; rows &= rows - 1) {
      const int r = __builtin_ctzll(rows);
      top_[r] = largest_of_64(pending_ + r * kStride);
      if (top_[r] == kNegInf) continue;
      offset_[r] = weights_.exponent_offset(top_[r]);
      new_rows_ &= ~(uint64_t{1} << r);
    }
  }
  HWY_INLINE void some() { weigh(std::min(count_, row_ + rows_of_a_step_)); }
  void rest() { weigh(count_); }

  // Sets max and sum of all rows; those whose weights have to be made again, a bit a row.
  uint64_t finish() {
    rest();
    uint64_t again = 0;
    for (int r = 0; r < count_; ++r) {
      Vec sum = hn::LoadU(F32(), sums_ + r * 16);
      again |= uint64_t{weights_.keep_sum(first_ + r, top_[r], total(&sum))} << r;
    }
    return again;
  }

 private:
  static float largest_of_64(const float* s) {
    const F32 d;
    const Vec low = hn::Max(hn::LoadU(d, s), hn::Max(hn::LoadU(d, s + 16), hn::Set(d, kNegInf)));
    return hn::GetLane(hn::MaxOfLanes(d, hn::Max(hn::LoadU(d, s + 32), hn::Max(hn::LoadU(d, s + 48), low))));
  }

  // What a row does not see of the pending chunk.
  HWY_INLINE void hide(int row, float* s) const {
    const ColumnRanges& v = weights_.visible(row);
    const uint64_t* mask = weights_.mask(row);
    auto bits = [&](int begin, int end) {
      begin = std::max(begin - begin_, 0), end = std::min(end - begin_, kCols);
      return begin < end ? ~uint64_t{0} >> (kCols - (end - begin)) << begin : uint64_t{0};
    };
    const uint64_t hidden = ~(bits(v.a0, v.a1) | bits(v.b0, v.b1)) | (mask ? ~mask[begin_ / kMaskCols] : 0);
    if (hidden == 0) return;
    const __m512 none = _mm512_set1_ps(kNegInf);
#pragma GCC unroll 4
    for (int i = 0; i < kCols; i += 16) _mm512_mask_storeu_ps(s + i, static_cast<__mmask16>(hidden >> i), none);
  }

  HWY_INLINE void weigh(int end) {
    const F32 d;
    const Vec scale = hn::Set(d, weights_.exponent_scale());
    auto to = products_.weight_taker(row_);
    const float* s = pending_ + row_ * kStride;
    for (int row = std::exchange(row_, std::max(row_, end)); row < end; ++row, s += kStride, to.next_row()) {
      const Vec offset = hn::Set(d, offset_[row]);
      Vec sum = hn::LoadU(d, sums_ + row * 16);
#pragma GCC unroll 2
      for (int c = 0; c < kCols; c += 32) {
        const Vec low = RowWeights::weight(s + c, scale, offset), high = RowWeights::weight(s + c + 16, scale, offset);
        sum = hn::Add(hn::Add(sum, low), high);
        to(begin_ + c, low, high);
      }
      hn::StoreU(sum, d, sums_ + row * 16);
    }
  }

  const RowWeights& weights_;
  Products& products_;
  int first_, count_, rows_of_a_step_;
  float *pending_, *next_;
  int row_, begin_ = 0;          // rows from row_ on of the pending chunk have yet to be weighed
  Span all_see_{0, kStripCols};  // columns that all rows see
  uint64_t new_rows_;            // that saw no key yet
  float top_[kMostBlockRows], offset_[kMostBlockRows];
  alignas(64) float sums_[kMostBlockRows * 16];
};

}  // namespace HWY_NAMESPACE
}  // namespace attend
