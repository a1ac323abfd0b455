#include "attend/kv/retention.h"

#include <algorithm>
#include <numeric>

namespace attend {
namespace {

struct KeepAll : Retention {
  int64_t stride() const override { return 1; }
  void choose(const KeyView& keys, int64_t, std::vector<int64_t>& slots) const override {
    slots.resize(static_cast<size_t>(keys.count()));
    std::iota(slots.begin(), slots.end(), int64_t{0});
  }
  bool lossless() const override { return true; }
};

struct Implied : Retention {
  explicit Implied(const Operator& op) : mechanism(op) {}

  int64_t stride() const override { return 1; }
  void choose(const KeyView& keys, int64_t next_position, std::vector<int64_t>& slots) const override {
    slots.clear();
    for (const KeyRange& range : mechanism.needed_from(next_position)) {
      const KeyRange in = slots_in(keys, range);
      for (int64_t slot = in.begin; slot < in.end; ++slot) slots.push_back(slot);
    }
  }
  bool lossless() const override { return true; }

  const Operator& mechanism;
};

}  // namespace

KeyRange slots_in(const KeyView& keys, const KeyRange& range) {
  const int64_t n = keys.count();
  auto slot_of = [&](int64_t position) {
    if (keys.position.empty()) return std::clamp<int64_t>(position, 0, n);
    return static_cast<int64_t>(std::lower_bound(keys.position.begin(), keys.position.end(), position) -
                                keys.position.begin());
  };
  const int64_t begin = slot_of(range.begin);
  return {begin, std::max(begin, slot_of(range.end))};
}

std::unique_ptr<Retention> make_keep_all() {
  return std::make_unique<KeepAll>();
}

std::unique_ptr<Retention> make_implied_retention(const Operator& mechanism) {
  return std::make_unique<Implied>(mechanism);
}

}  // namespace attend
