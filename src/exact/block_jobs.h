#pragma once
// A block of queries against the splits of its keys: which splits it reaches, and what the kernel is given for each.
#include <algorithm>

#include "exact/mask_rows.h"
#include "exact/problem.h"
#include "exact/workspace.h"

namespace attend::exact {

class BlockJobs {
 public:
  // Keys with positions in `range`.
  BlockJobs(const Problem& problem, KeyRange range, const SplitKernels& kernels);

  // Queries of a whole block.
  int64_t tokens() const { return tokens_; }
  Workspace workspace(Scratch& scratch) const;

  // Slots that the first query of the block sees.
  SlotRanges slots_seen(const Block& block) const;
  // Those of each query.
  void find_slots(const Block& block, Workspace& w) const;
  // The same, and the queries as the kernel takes them.
  void prepare(const Block& block, Workspace& w) const;

  // Asks memory for what a small block will read: its rows are too few for hardware to see where they lead.
  void ask_for(const Block& block) const;

  // f(Split) for each split of which some query of the block sees a key, ascending.
  template <class F>
  void each_split(const Block& block, const Workspace& w, F f) const {
    const Keys& k = keys(block);
    KeyRange a{kNoEnd, 0}, b{kNoEnd, 0};
    auto widen = [](KeyRange& hull, KeyRange r) {
      if (r.begin < r.end) hull = {std::min(hull.begin, r.begin), std::max(hull.end, r.end)};
    };
    for (int64_t t = 0; t < block.tokens; ++t) widen(a, w.slots[t].a), widen(b, w.slots[t].b);
    int64_t slot = std::min(a.begin, b.begin);
    const int64_t end = std::max(a.end, b.end);
    while (slot < end) {
      const Split split = split_at(k, slot);
      const int64_t last = split.first_slot + split.cols;
      if (((a.begin < last && split.first_slot < a.end) || (b.begin < last && split.first_slot < b.end)) &&
          mask_reaches(block, w, k.position(slot) / kSplitPositions))
        f(split);
      slot = last;
      if (slot >= a.end && slot < b.begin && b.begin < b.end) slot = b.begin;
    }
  }

  // Whether some query of the block sees a key of the split.
  bool reaches(const Block& block, const Workspace& w, const Split& split) const;

  // The split that holds a slot.
  static Split split_at(const Keys& keys, int64_t slot) {
    const int64_t split = keys.position(slot) / kSplitPositions;
    const int64_t first = keys.lower_slot(split * kSplitPositions);
    return {first, static_cast<int>(keys.lower_slot((split + 1) * kSplitPositions) - first)};
  }

  // The kernel's call for a prepared block, without places for results and without a second pass.
  SplitJob job(const Block& block, Workspace& w, const Split& split) const;

  const Keys& keys(const Block& block) const {
    return p_.keys[static_cast<size_t>(block.batch * p_.kv_heads + block.kv_head)];
  }

 private:
  const BlockMask* mask() const { return p_.variant.mask; }
  int64_t mask_heads() const { return mask()->sizes().heads == 1 ? 1 : p_.group; }
  bool mask_reaches(const Block& block, const Workspace& w, int64_t split) const;
  void gather_mask(const Block& block, Workspace& w, const Split& split) const;

  const Problem& p_;
  KeyRange range_;
  const SplitKernels& kernels_;
  int64_t tokens_;
};

}  // namespace attend::exact
