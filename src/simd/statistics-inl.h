// Statistics of the weights that keys get (attend/tensor/weight_places.h). See math-inl.h on how it is included.
#include <algorithm>
#include <cstdint>

#include "attend/simd/split.h"

namespace attend {
namespace HWY_NAMESPACE {

inline KeyStatistics from(const KeyStatistics& of, int64_t first) {
  return {of.sum ? of.sum + first : nullptr, of.largest ? of.largest + first : nullptr,
          of.times ? of.times + first : nullptr, of.newest ? of.newest + first : nullptr};
}

// The weights p of one query join those of columns [begin, end), a multiple of the lanes.
inline void gather_columns(const float* p, int64_t begin, int64_t end, float attended, int32_t position,
                           const KeyStatistics& to) {
  const F32 d;
  const I32 di;
  if (to.sum)
    for (int64_t c = begin; c < end; c += kLanes)
      hn::StoreU(hn::Add(hn::LoadU(d, to.sum + c), hn::LoadU(d, p + c)), d, to.sum + c);
  if (to.largest)
    for (int64_t c = begin; c < end; c += kLanes) {
      const Vec weight = hn::LoadU(d, p + c), largest = hn::LoadU(d, to.largest + c);
      hn::StoreU(hn::IfThenElse(hn::Gt(weight, largest), weight, largest), d, to.largest + c);
    }
  if (!to.times && !to.newest) return;
  const Vec least = hn::Set(d, attended);
  const auto now = hn::Set(di, position);
  for (int64_t c = begin; c < end; c += kLanes) {
    const auto seen = hn::RebindMask(di, hn::Gt(hn::LoadU(d, p + c), least));
    if (to.times) hn::StoreU(hn::Sub(hn::LoadU(di, to.times + c), hn::VecFromMask(di, seen)), di, to.times + c);
    if (to.newest) hn::StoreU(hn::IfThenElse(seen, now, hn::LoadU(di, to.newest + c)), di, to.newest + c);
  }
}

inline void gather(const float* scores, int64_t count, float lse, float attended, int32_t position,
                   const KeyStatistics& to) noexcept {
  constexpr int64_t kPart = 256;
  const F32 d;
  const Vec offset = hn::Set(d, lse == kNegInf ? 0.0f : lse);
  alignas(64) float p[kPart];
  // Sums were last touched a token ago: they come while the first weights are worked out.
  if (to.sum)
    for (int64_t c = 0; c < count; c += 16) __builtin_prefetch(to.sum + c, 1);
  for (int64_t first = 0; first < count; first += kPart) {
    const int64_t part = std::min(kPart, count - first), whole = part / kLanes * kLanes, rest = part - whole;
    for (int64_t c = 0; c < whole; c += kLanes)
      hn::Store(exp_of(hn::Sub(hn::LoadU(d, scores + first + c), offset)), d, p + c);
    const KeyStatistics here = from(to, first);
    gather_columns(p, 0, whole, attended, position, here);
    if (rest == 0) continue;
    alignas(64) float tail[kLanes] = {}, sum[kLanes] = {}, largest[kLanes] = {};
    alignas(64) int32_t times[kLanes] = {}, newest[kLanes] = {};
    const KeyStatistics last = from(here, whole);
    std::copy_n(scores + first + whole, rest, tail);
    hn::Store(exp_of(hn::Sub(hn::Load(d, tail), offset)), d, tail);
    auto each = [&](auto f) {
      if (last.sum) f(last.sum, sum);
      if (last.largest) f(last.largest, largest);
      if (last.times) f(last.times, times);
      if (last.newest) f(last.newest, newest);
    };
    each([&](auto* theirs, auto* own) { std::copy_n(theirs, rest, own); });
    gather_columns(tail, 0, kLanes, attended, position,
                   {last.sum ? sum : nullptr, last.largest ? largest : nullptr, last.times ? times : nullptr,
                    last.newest ? newest : nullptr});
    each([&](auto* theirs, auto* own) { std::copy_n(own, rest, theirs); });
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace attend
