// Sums over keys, each key in the lane of its position, also with gaps between them. See math-inl.h on how it is
// included.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "simd/spans-inl.h"

namespace attend {
namespace HWY_NAMESPACE {

template <int64_t kCount, class V>
HWY_INLINE float total_of_lanes(V x) {
  if constexpr (kCount > 4) {
    const hn::Half<hn::DFromV<V>> half;
    return total_of_lanes<kCount / 2>(hn::Add(hn::LowerHalf(half, x), hn::UpperHalf(half, x)));
  } else {
    x = hn::Add(x, hn::Shuffle1032(x));
    return hn::GetLane(hn::Add(x, hn::Shuffle2301(x)));
  }
}
// 16 lanes in one order on every instruction set: halves, quarters, eighths, pairs. Rotating the lanes changes nothing,
// so it does not matter at which position column 0 stands.
HWY_INLINE float total(Vec* lanes) {
  for (int half = 8 / kLanes; half >= 1; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] = hn::Add(lanes[i], lanes[i + half]);
  return total_of_lanes<kLanes>(lanes[0]);
}

// The columns of a split in 16 lanes by position mod 16, each lane in ascending order.
class PositionLanes {
 public:
  void find(const int32_t* positions, int cols) {
    positions_ = positions;
    cols_ = cols;
#if ATTEND_AVX512
    // Columns are taken 64 at a time; a step takes the next one of each lane.
    int steps = 0;
    for (int block = 0; block * 64 < cols; ++block) {
      first_step_[block] = steps;
      int next[16];
      std::fill_n(next, 16, steps);
      for (int c = 0; c < std::min(64, cols - block * 64); ++c) {
        const int lane = positions[block * 64 + c] % 16, at = next[lane]++;
        if (at == steps) steps_[steps++] = Step{};
        Step& step = steps_[at];
        step.column[lane] = static_cast<uint8_t>(c);
        (c < 32 ? step.low : step.high) |= static_cast<uint16_t>(1u << lane);
      }
      first_step_[block + 1] = steps;
    }
#endif
  }

  // lanes += x[c], or |x[c]|, for the columns c of the spans.
  void add(const float* x, const Spans& spans, bool magnitudes, Vec* lanes) const {
#if ATTEND_AVX512
    for (int block = 0; block * 64 < cols_; ++block) {
      const uint64_t in = within(spans, block * 64);
      if (in == 0) continue;
      auto load = [&](int part) {
        const Vec of{_mm512_maskz_loadu_ps(static_cast<__mmask16>(in >> part * 16), x + block * 64 + part * 16)};
        return magnitudes ? hn::Abs(of).raw : of.raw;
      };
      const __m512 a = load(0), b = load(1), c = load(2), d = load(3);
      for (int s = first_step_[block]; s < first_step_[block + 1]; ++s) {
        const Step& step = steps_[s];
        const __m512i column = _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(step.column)));
        const __m512 low = _mm512_maskz_permutex2var_ps(step.low, a, column, b),
                     high = _mm512_maskz_permutex2var_ps(step.high, c, column, d);
        lanes[0] = hn::Add(lanes[0], Vec{_mm512_or_ps(low, high)});
      }
    }
#else
    const F32 d;
    alignas(64) float sum[16] = {};
    for (const Span& span : spans)
      for (int c = span.begin; c < std::min(span.end, cols_); ++c)
        sum[positions_[c] % 16] += magnitudes ? std::abs(x[c]) : x[c];
    for (int i = 0; i < 16 / kLanes; ++i) lanes[i] = hn::Add(lanes[i], hn::Load(d, sum + i * kLanes));
#endif
  }

 private:
#if ATTEND_AVX512
  // A bit for each of the 64 columns from `first` on.
  static uint64_t within(const Spans& spans, int first) {
    uint64_t bits = 0;
    for (const Span& span : spans) {
      const int begin = std::max(span.begin - first, 0), end = std::min(span.end - first, 64);
      if (begin < end) bits |= ~uint64_t{0} >> (64 - (end - begin)) << begin;
    }
    return bits;
  }

  struct Step {
    alignas(16) uint8_t column[16];
    uint16_t low, high;  // lanes that have a column below 32, and above
  };
  Step steps_[kSplitPositions];
  int first_step_[kSplitPositions / 64 + 1];
#endif
  const int32_t* positions_;
  int cols_;
};

}  // namespace HWY_NAMESPACE
}  // namespace attend
