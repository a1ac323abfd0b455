#pragma once
// What a query sees, as slots of its keys and as columns of a split.
#include <algorithm>

#include "exact/problem.h"
#include "exact/workspace.h"

namespace attend::exact {

// Slots that query i of batch entry b sees, of keys at positions in `range`.
inline SlotRanges slots_seen(const Problem& p, const Keys& keys, int64_t b, int64_t i, KeyRange range = {0, kNoEnd}) {
  auto to_slots = [&](KeyRange r) {
    r = clip(r, range);
    return r.begin < r.end ? KeyRange{keys.lower_slot(r.begin), keys.lower_slot(r.end)} : KeyRange{};
  };
  const int64_t position = p.position(b, i);
  const Visible seen = visible_from(position, p.options, p.document(b, position));
  return {to_slots(seen.a), to_slots(seen.b)};
}

inline ColumnRanges columns_of(const SlotRanges& slots, const Split& split) {
  auto column = [&](int64_t slot) {
    return static_cast<int32_t>(std::clamp<int64_t>(slot - split.first_slot, 0, split.cols));
  };
  return {column(slots.a.begin), column(slots.a.end), column(slots.b.begin), column(slots.b.end)};
}

}  // namespace attend::exact
