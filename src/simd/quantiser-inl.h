// Numbers as integers, or as e4m3, times a scale, and the turn that spreads outliers before. See math-inl.h on how it
// is included.
#include <algorithm>
#include <bit>

#include "simd/turn_signs.h"

namespace attend {
namespace HWY_NAMESPACE {

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
    const hn::RebindToUnsigned<F32> du;
    // Magnitudes order as their bits do, with infinities and NaN on top.
    auto top = hn::Zero(du);
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) top = hn::Max(top, hn::BitCast(du, hn::Abs(hn::LoadU(d, x + i))));
    uint32_t bits = hn::GetLane(hn::MaxOfLanes(du, top));
    for (; i < count; ++i) bits = std::max(bits, std::bit_cast<uint32_t>(std::abs(x[i])));
    const float largest = std::bit_cast<float>(bits);
    const bool finite = bits < 0x7f800000u;
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

}  // namespace HWY_NAMESPACE
}  // namespace attend
