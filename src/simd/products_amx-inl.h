// Products of a split by AMX tiles in bf16 (simd/tiles.h): 32 rows at a time, 2 x 2 tiles of results. See math-inl.h on
// how it is included.
//
// A score is, for each 32 elements of D in ascending order, one tile product: its own query and key, in an order that
// neither rows nor columns nor their number change. Weighted values likewise, for each 32 positions of a split: a key
// lies at its place among the split's 512 positions, and a key that is hidden or missing adds an exact zero.
#include <immintrin.h>

#include <algorithm>

#include "simd/tiles.h"

namespace attend {
namespace HWY_NAMESPACE {

inline constexpr int kTileWide = 2 * kTileRows;  // columns of a block of tiles

HWY_INLINE int tiles_of(int rows) {
  return (rows + kTileRows - 1) / kTileRows;
}

template <int kRows, int kCols>
HWY_INLINE void zero_tiles() {
  Tiles::zero<0>();
  if constexpr (kCols == 2) Tiles::zero<1>();
  if constexpr (kRows == 2) Tiles::zero<2>();
  if constexpr (kRows == 2 && kCols == 2) Tiles::zero<3>();
}

// What tiles hold.
struct TilesOfBf16 {
  template <int kC, int kA, int kB>
  static HWY_INLINE void multiply() {
    Tiles::multiply_bf16<kC, kA, kB>();
  }
};
struct TilesOfSignedAndUnsigned {
  template <int kC, int kA, int kB>
  static HWY_INLINE void multiply() {
    Tiles::multiply_s8u8<kC, kA, kB>();
  }
};
struct TilesOfUnsignedAndSigned {
  template <int kC, int kA, int kB>
  static HWY_INLINE void multiply() {
    Tiles::multiply_u8s8<kC, kA, kB>();
  }
};

// One product of each tile of results; strides in words. kPassing: B is not read again soon and leaves A in the first
// cache.
template <class Of, int kRows, int kCols, bool kPassing = false>
HWY_INLINE void multiply_tiles(const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t b_stride) {
  Tiles::load<6, kPassing>(b, b_stride * 4);
  Tiles::load<4>(a, a_stride * 4);
  Of::template multiply<0, 4, 6>();
  if constexpr (kCols == 2) {
    Tiles::load<7, kPassing>(b + 16, b_stride * 4);
    Of::template multiply<1, 4, 7>();
  }
  if constexpr (kRows == 2) {
    Tiles::load<5>(a + kTileRows * a_stride, a_stride * 4);
    Of::template multiply<2, 5, 6>();
    if constexpr (kCols == 2) Of::template multiply<3, 5, 7>();
  }
}

template <int kRows, int kCols, class T>
HWY_INLINE void store_tiles(T* to, int64_t stride) {
  Tiles::store<0>(to, stride * 4);
  if constexpr (kCols == 2) Tiles::store<1>(to + 16, stride * 4);
  if constexpr (kRows == 2) Tiles::store<2>(to + kTileRows * stride, stride * 4);
  if constexpr (kRows == 2 && kCols == 2) Tiles::store<3>(to + kTileRows * stride + 16, stride * 4);
}

class AmxKeys : public Bf16Keys {
 public:
  AmxKeys(const SplitJob& job, int rows) : Bf16Keys(job, rows, PairOrder::kTiles) {}

  void take_block(int first, int count, float* strip) {
    Bf16Keys::take_block(first, count, strip);
    for (int r = count; r < tiles_of(count) * kTileRows; ++r) std::fill_n(queries_ + r * words_, words_, 0u);
  }

  void scores(int, int rows, int begin, int end) const {
    scores_to(strip_ + first_col_, kStripStride, rows, begin, end, [] {});
  }

  int steps() const { return static_cast<int>(words_ / kTileRows) * (kPanelCols / kTileWide); }
  // The scores of the panel's columns [begin, end), rows `stride` apart; calls between() between products.
  template <class Between>
  HWY_INLINE void scores_to(float* to, int64_t stride, int rows, int begin, int end, Between between) const {
    for (int c = begin / 16 * 16; c < end; c += kTileWide) {
      const bool both = c + kTileRows < end;
      if (rows > kTileRows) {
        both ? score_tiles<2, 2>(c, to, stride, between) : score_tiles<2, 1>(c, to, stride, between);
      } else {
        both ? score_tiles<1, 2>(c, to, stride, between) : score_tiles<1, 1>(c, to, stride, between);
      }
    }
    if (scale_ == 1) return;
    const __m512 scale = _mm512_set1_ps(scale_);
    for (int r = 0; r < rows; ++r)
      for (int c = begin / 16 * 16; c < end; c += 16) {
        float* s = to + r * stride + c;
        _mm512_storeu_ps(s, _mm512_mul_ps(_mm512_loadu_ps(s), scale));
      }
  }

 private:
  // Of columns from c on of the panel taken.
  template <int kRows, int kCols, class Between>
  HWY_INLINE void score_tiles(int c, float* to, int64_t stride, Between between) const {
    zero_tiles<kRows, kCols>();
    for (int64_t k = 0; k < words_; k += kTileRows) {
      multiply_tiles<TilesOfBf16, kRows, kCols, true>(queries_ + k, words_, panels_.at() + k * kPanelCols + c,
                                                      kPanelCols);
      between();
    }
    store_tiles<kRows, kCols>(to + c, stride);
  }
};

class AmxValues : public Bf16Values {
 public:
  static constexpr bool kOverwrites = true;

  AmxValues(const SplitJob& job, int rows) : Bf16Values(job, rows, PairOrder::kTiles) {}

  void take_block(int first, float* strip) {
    Bf16Values::take_block(first, strip);
    taken_ = false;
  }

  // Weights come from here on, from PassingWeights, in whole blocks of 64 positions.
  void pass_weights() { taken_ = true; }
  // put(column, 16 or 32 weights) of a row.
  auto weight_taker(int row) const {
    return Taker{reinterpret_cast<uint16_t*>(weights_ + row * kWeightStride) + element(0)};
  }

  void take_weights(int, int rows, const Spans& spans) {
    steps_ = 0;
    for (const Span& span : spans)
      for (int i = element(span.begin) / kStep; i <= element(span.end - 1) / kStep; ++i) steps_ |= 1u << i;
    for (int r = taken_ ? rows : 0; r < tiles_of(rows) * kTileRows; ++r) {
      uint32_t* to = weights_ + r * kWeightStride;
      for (int i = 0; i < kSteps; ++i)
        if (steps_ >> i & 1) std::fill_n(to + i * kTileRows, kTileRows, 0u);
      if (r < rows) place_weights(strip_ + r * kStripStride, spans, reinterpret_cast<uint16_t*>(to));
    }
  }

  void add(int, int rows, const Spans&) {
    for (int i = 0; i < kSteps; ++i) {
      if ((steps_ >> i & 1) == 0 || (packed_steps_ >> i & 1) != 0) continue;
      packed_steps_ |= 1u << i;
      pack_values_of(i * kTileRows, (i + 1) * kTileRows);
    }
    for (int64_t c = 0; c < padded_; c += kTileWide) {
      const bool both = c + kTileRows < padded_;
      if (rows > kTileRows) {
        both ? value_tiles<2, 2>(rows, c) : value_tiles<2, 1>(rows, c);
      } else {
        both ? value_tiles<1, 2>(rows, c) : value_tiles<1, 1>(rows, c);
      }
    }
  }

  bool values_finite() const { return values_finite_; }

  // In the same order, with zeros for the values that the row does not see.
  void add_seen(int row, const Spans& ranges) {
    uint32_t seen[kMostPairs] = {};
    mark_seen(taken_ ? nullptr : strip_ + row * kStripStride, ranges, seen);
    const uint32_t* weights = weights_ + row / kTileRows * kTileRows * kWeightStride;
    alignas(64) uint32_t values[kTileRows * 16];
    alignas(64) float sums[kTileRows * 16];
    for (int64_t c = 0; c < padded_; c += 16) {
      Tiles::zero<0>();
      for (int i = 0; i < kSteps; ++i) {
        if ((steps_ >> i & 1) == 0) continue;
        for (int pair = 0; pair < kTileRows; ++pair) {
          const int at = i * kTileRows + pair;
          const __m512i mask = _mm512_set1_epi32(static_cast<int>(seen[at]));
          _mm512_store_si512(values + pair * 16,
                             _mm512_and_si512(_mm512_loadu_si512(values_ + at * padded_ + c), mask));
        }
        Tiles::load<4>(weights + i * kTileRows, kWeightStride * 4);
        Tiles::load<6>(values, kTileBytes);
        Tiles::multiply_bf16<0, 4, 6>();
      }
      Tiles::store<0>(sums, kTileBytes);
      std::copy_n(sums + row % kTileRows * 16, 16, acc_ + row * job_.acc_stride + c);
    }
  }

 private:
  struct Taker {
    uint16_t* to;
    void next_row() { to += 2 * kWeightStride; }
    HWY_INLINE void operator()(int c, Vec p) const {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + c), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(p.raw)));
    }
    HWY_INLINE void operator()(int c, Vec low, Vec high) const {
      _mm512_storeu_si512(to + c, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high.raw, low.raw)));
    }
  };

  static constexpr int kStep = 2 * kTileRows, kSteps = static_cast<int>(kSplitPositions) / kStep;  // keys of a product
  // Words of a row of weights; not a power of two, so that rows of a tile lie in different sets of the first cache.
  static constexpr int kWeightStride = kMostPairs / 2 + kTileRows;
  static_assert(kSteps * kTileRows <= kWeightStride && kWeightStride <= kMostPairs);

  // Of columns from c on of the values.
  template <int kRows, int kCols>
  void value_tiles(int rows, int64_t c) const {
    zero_tiles<kRows, kCols>();
    for (int i = 0; i < kSteps; ++i)
      if (steps_ >> i & 1)
        multiply_tiles<TilesOfBf16, kRows, kCols, true>(weights_ + i * kTileRows, kWeightStride,
                                                        values_ + i * kTileRows * padded_ + c, padded_);
    if (rows == kRows * kTileRows) return store_tiles<kRows, kCols>(acc_ + c, job_.acc_stride);
    alignas(64) float sums[kRows * kTileRows * kCols * 16];
    store_tiles<kRows, kCols>(sums, kCols * 16);
    for (int r = 0; r < rows; ++r) std::copy_n(sums + r * kCols * 16, kCols * 16, acc_ + r * job_.acc_stride + c);
  }

  bool taken_ = false;                     // weights: by weight_taker()
  uint32_t steps_ = 0, packed_steps_ = 0;  // of 32 positions: with weights; with packed values
};

template <class Keys, class Values>
class TiledProducts : public Products<Keys, Values> {
 public:
  static constexpr int kBlockRows = split_layout::kMostBlockRows, kGroupRows = kBlockRows;
  static_assert(kBlockRows == 2 * kTileRows);

  TiledProducts(const SplitJob& job, int rows) : Products<Keys, Values>(job, rows), tiles_(std::min(rows, kTileRows)) {}

 private:
  Tiles tiles_;
};

using AmxProducts = TiledProducts<AmxKeys, AmxValues>;

}  // namespace HWY_NAMESPACE
}  // namespace attend
