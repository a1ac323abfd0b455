// Queries on their way in, partials on their way out (see attend/simd/split.h). See math-inl.h on how it is included.
#include <algorithm>
#include <cmath>

namespace attend {
namespace HWY_NAMESPACE {

void scale(const float* from, int64_t count, float factor, float* to) noexcept {
  const F32 d;
  const Vec by = hn::Set(d, factor);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) hn::StoreU(hn::Mul(hn::LoadU(d, from + i), by), d, to + i);
  for (; i < count; ++i) to[i] = from[i] * factor;
}

void fold(const PartialRows& into, const PartialRows& from, int64_t rows, int64_t dv) noexcept {
  const F32 d;
  for (int64_t r = 0; r < rows; ++r) {
    const float max = std::max(into.max[r], from.max[r]), offset = max == kNegInf ? 0.0f : max;
    const float a = exp_of(into.max[r] - offset), b = exp_of(from.max[r] - offset);
    into.max[r] = max;
    into.sum[r] = std::fma(into.sum[r], a, from.sum[r] * b);
    float *x = into.acc + r * into.acc_stride, *y = from.acc + r * from.acc_stride;
    const Vec va = hn::Set(d, a), vb = hn::Set(d, b);
    for (int64_t c = 0; c < padded_dv(dv); c += kLanes)
      hn::StoreU(hn::MulAdd(hn::LoadU(d, x + c), va, hn::Mul(hn::LoadU(d, y + c), vb)), d, x + c);
  }
}

void finish(const PartialRows& rows, int64_t r, const float* sink, int64_t dv, float* out, float* lse) noexcept {
  const F32 d;
  float max = rows.max[r], sum = rows.sum[r];
  float* acc = rows.acc + r * rows.acc_stride;
  const bool empty = max == kNegInf && sum == 0;
  float factor = 1;
  if (sink && !empty) {
    const float top = std::max(max, *sink);
    factor = exp_of(max - top);
    sum = std::fma(sum, factor, exp_of(*sink - top));
    max = top;
  }
  if (out) {
    const Vec weight = hn::Set(d, factor), divisor = hn::Set(d, empty ? 1.0f : sum);
    int64_t c = 0;
    // + 0 makes a negative zero positive: whether hidden keys added zeros must not show.
    auto value = [&](int64_t at) {
      return hn::Add(hn::Div(hn::Mul(hn::LoadU(d, acc + at), weight), divisor), hn::Zero(d));
    };
    for (; c + kLanes <= dv; c += kLanes) hn::StoreU(value(c), d, out + c);
    if (c < dv) {
      alignas(64) float tail[kLanes];
      hn::Store(value(c), d, tail);
      std::copy_n(tail, dv - c, out + c);
    }
  }
  if (lse) *lse = empty ? kNegInf : max + std::log(sum);
}

}  // namespace HWY_NAMESPACE
}  // namespace attend
