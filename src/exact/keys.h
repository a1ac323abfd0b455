#pragma once
// The keys of one kv head, whatever they came as: slots, positions, and where the splits of 512 positions cut them.
#include <algorithm>

#include "attend/tensor/key_view.h"

namespace attend::exact {

class Keys {
 public:
  Keys() = default;
  explicit Keys(const KeyView& view) : view_(view), count_(view.count()) {}
  // A plain array of `count` keys.
  explicit Keys(const KeyRun& run) : single_(run), count_(run.count) {}

  std::span<const KeyRun> runs() const { return single_.k ? std::span(&single_, 1) : view_.runs; }
  // Those that hold slots [begin, end).
  std::span<const KeyRun> runs(int64_t begin, int64_t end) const {
    const std::span<const KeyRun> all = runs();
    const auto first =
        std::partition_point(all.begin(), all.end(), [&](const KeyRun& r) { return r.first_slot + r.count <= begin; });
    const auto last = std::partition_point(first, all.end(), [&](const KeyRun& r) { return r.first_slot < end; });
    return {first, last};
  }
  int64_t count() const { return count_; }
  int64_t position(int64_t slot) const {
    return view_.position.empty() ? slot : view_.position[static_cast<size_t>(slot)];
  }
  // Positions from a slot on, or null where they equal the slots.
  const int32_t* positions(int64_t slot) const {
    return view_.position.empty() ? nullptr : view_.position.data() + slot;
  }
  // The first slot whose position is at least `position`.
  int64_t lower_slot(int64_t position) const {
    if (view_.position.empty()) return std::clamp<int64_t>(position, 0, count_);
    if (position > view_.position.back()) return count_;
    return std::lower_bound(view_.position.begin(), view_.position.end(), position) - view_.position.begin();
  }
  // One past the last position, or 0.
  int64_t end_position() const { return count_ ? position(count_ - 1) + 1 : 0; }

 private:
  KeyView view_;
  KeyRun single_;
  int64_t count_ = 0;
};

}  // namespace attend::exact
