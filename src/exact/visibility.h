#pragma once
// Which positions a query sees, as two ascending ranges, and the splits of keys that a block of queries has to visit.
#include <algorithm>
#include <vector>

#include "attend/exact/softmax_options.h"
#include "attend/tensor/key_view.h"

namespace attend::exact {

// Positions visible from one query: [a.begin, a.end) before [b.begin, b.end), disjoint; either may be empty.
struct Visible {
  KeyRange a, b;
};

constexpr KeyRange clip(KeyRange r, KeyRange to) {
  r = {std::max(r.begin, to.begin), std::min(r.end, to.end)};
  return r.begin < r.end ? r : KeyRange{to.begin, to.begin};
}

// `document`: positions of the query's own document.
constexpr Visible visible_from(int64_t position, const SoftmaxOptions& o, KeyRange document) {
  const int64_t end = o.causal ? std::max<int64_t>(0, position + 1) : kNoEnd;
  const int64_t begin = o.window > 0 ? std::max<int64_t>(0, position - o.window + 1) : 0;
  const int64_t head_end = std::max(o.prefix, o.window > 0 ? std::min(o.sinks, end) : 0);
  const KeyRange tail = {std::max(begin, head_end), end};
  return {clip({0, head_end}, document), clip(tail, document)};
}

// Positions that some query at `position` or later can see.
inline std::vector<KeyRange> needed_from(int64_t position, SoftmaxOptions open) {
  open.causal = false;
  const Visible seen = visible_from(position, open, {0, kNoEnd});
  std::vector<KeyRange> ranges;
  for (const KeyRange& r : {seen.a, seen.b})
    if (r.begin < r.end) ranges.push_back(r);
  return ranges;
}

}  // namespace attend::exact
