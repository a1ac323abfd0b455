#include "attend/kv/retention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace attend {
namespace {

struct Implied : Retention {
  explicit Implied(const Operator& op) : mechanism(op) {}

  int64_t stride() const override { return 1; }
  void choose(const Held& held, std::vector<int64_t>& slots) const override {
    slots.clear();
    for (const KeyRange& range : mechanism.needed_from(held.next_position)) {
      const KeyRange in = slots_in(held.keys, range);
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

void keep_best(std::span<const float> scores, int64_t budget, std::vector<int64_t>& slots) {
  const int64_t n = static_cast<int64_t>(scores.size()), kept = std::clamp<int64_t>(budget, 0, n);
  slots.resize(scores.size());
  std::iota(slots.begin(), slots.end(), int64_t{0});
  if (kept == n) return;
  auto value = [&](int64_t slot) {
    const float s = scores[static_cast<size_t>(slot)];
    return std::isnan(s) ? -std::numeric_limits<float>::infinity() : s;
  };
  std::nth_element(slots.begin(), slots.begin() + kept, slots.end(), [&](int64_t a, int64_t b) {
    const float x = value(a), y = value(b);
    return x != y ? x > y : a > b;
  });
  slots.resize(static_cast<size_t>(kept));
  std::sort(slots.begin(), slots.end());
}

void Ranking::rank(const Held& held, std::vector<float>& scores) const {
  scores.resize(static_cast<size_t>(held.keys.count()));
  score(held, scores);
  const KeyRange recent = slots_in(held.keys, {std::max<int64_t>(0, held.next_position - options_.recent), kNoEnd});
  std::fill(scores.begin() + recent.begin, scores.end(), std::numeric_limits<float>::max());
  const KeyRange sinks = slots_in(held.keys, {0, options_.sinks});
  std::fill_n(scores.begin(), sinks.end, std::numeric_limits<float>::infinity());
}

void Ranking::choose(const Held& held, std::vector<int64_t>& slots) const {
  std::vector<float> scores;
  rank(held, scores);
  keep_best(scores, options_.budget, slots);
}

std::unique_ptr<Retention> make_implied_retention(const Operator& mechanism) {
  return std::make_unique<Implied>(mechanism);
}

}  // namespace attend
