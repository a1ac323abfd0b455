#pragma once
// What selectors share that read groups of neighbouring keys: the vectors that stand for groups, and the choice of the
// best groups beside sinks and the newest keys.
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "attend/simd/dense.h"
#include "attend/sparse/selector.h"

namespace attend {

// What is read whatever the query is leaves half of a small budget to groups.
struct Budget {
  int64_t keys, sinks, recent;

  static Budget of(int64_t keys, int64_t sinks, int64_t recent) {
    return {keys, std::min(sinks, keys / 4), std::clamp<int64_t>(recent, 1, std::max<int64_t>(1, keys / 2))};
  }
  // Most of it is for the newest keys, as in local windows.
  static Budget with_window(int64_t keys, int64_t sinks, int64_t recent) {
    Budget budget{keys, std::min(sinks, keys / 4), 0};
    budget.recent = std::clamp<int64_t>(recent, 1, std::max<int64_t>(1, (keys - budget.sinks) * 2 / 3));
    return budget;
  }
  int64_t left() const { return keys - sinks - recent; }
};

inline int64_t position_at(const KeyView& keys, int64_t slot) {
  return keys.position.empty() ? slot : keys.position[static_cast<size_t>(slot)];
}
// The first slot of a key from this position on. O(log keys).
inline int64_t slot_at(const KeyView& keys, int64_t position) {
  if (keys.position.empty()) return std::min(position, keys.count());
  return std::lower_bound(keys.position.begin(), keys.position.end(), position) - keys.position.begin();
}

// Vectors of d elements, side by side in panels.
class VectorTable {
 public:
  explicit VectorTable(int64_t d = 0) : d_(d) {}

  void resize(int64_t vectors) {
    panels_.resize(static_cast<size_t>((vectors + kPanelKeys - 1) / kPanelKeys * kPanelKeys * d_), 0.0f);
  }
  void write(int64_t vector, std::span<const float> x) {
    float* to = panels_.data() + vector / kPanelKeys * kPanelKeys * d_ + vector % kPanelKeys;
    for (int64_t c = 0; c < d_; ++c) to[c * kPanelKeys] = x[static_cast<size_t>(c)];
  }
  void read(int64_t vector, std::span<float> x) const {
    const float* from = panels_.data() + vector / kPanelKeys * kPanelKeys * d_ + vector % kPanelKeys;
    for (int64_t c = 0; c < d_; ++c) x[static_cast<size_t>(c)] = from[c * kPanelKeys];
  }
  // f(vector, head, product) for the first `vectors` and the rows of q [heads, d].
  template <class F>
  void products(const DenseKernels& kernels, const float* q, int64_t heads, int64_t vectors, F f) const {
    constexpr int64_t kHeads = 8;  // at once
    float products[kHeads * kPanelKeys];
    for (int64_t first = 0; first < vectors; first += kPanelKeys)
      for (int64_t head = 0; head < heads; head += kHeads) {
        const int64_t count = std::min(kHeads, heads - head);
        kernels.dots(q + head * d_, d_, count, d_, panels_.data() + first * d_, products, kPanelKeys);
        for (int64_t h = 0; h < count; ++h)
          for (int64_t v = first; v < std::min(vectors, first + kPanelKeys); ++v)
            f(v, head + h, products[h * kPanelKeys + v - first]);
      }
  }
  int64_t bytes() const { return static_cast<int64_t>(panels_.capacity() * sizeof(float)); }
  int64_t bytes_of(int64_t vectors) const { return vectors * d_ * static_cast<int64_t>(sizeof(float)); }

 private:
  int64_t d_;
  std::vector<float> panels_;  // of 64 vectors, [d, 64]
};

// Scratch of a kv head's choices, kept from token to token.
struct Choosing {
  std::vector<float> scores, likeness, question;
  std::vector<int64_t> order, proposed;
  std::vector<KeyRange> chosen;
};

// Sinks, the newest keys, and groups in descending order of score, the later one first among equals, up to the first
// that does not fit. slots(group) are its keys. No score may be NaN.
template <class Slots>
void read_best(std::span<const float> scores, const Budget& budget, int64_t n, const Slots& slots, Choosing& scratch,
               Selection& selection) {
  std::vector<int64_t>& heap = scratch.order;
  heap.resize(scores.size());
  std::iota(heap.begin(), heap.end(), int64_t{0});
  const auto worse = [&](int64_t a, int64_t b) {
    const float x = scores[static_cast<size_t>(a)], y = scores[static_cast<size_t>(b)];
    return x != y ? x < y : a < b;
  };
  std::make_heap(heap.begin(), heap.end(), worse);
  const int64_t near = n - budget.recent;
  std::vector<KeyRange>& chosen = scratch.chosen;
  chosen.clear();
  int64_t left = budget.left();
  for (auto end = heap.end(); end != heap.begin(); --end) {
    std::pop_heap(heap.begin(), end, worse);
    const KeyRange whole = slots(end[-1]);
    const KeyRange range = {std::max(whole.begin, budget.sinks), std::min(whole.end, near)};
    if (range.begin >= range.end) continue;
    if (range.end - range.begin > left) break;
    chosen.push_back(range);
    left -= range.end - range.begin;
  }
  std::sort(chosen.begin(), chosen.end(), [](const KeyRange& a, const KeyRange& b) { return a.begin < b.begin; });
  append_range(selection.slots, {0, budget.sinks});
  for (const KeyRange& range : chosen) append_range(selection.slots, range);
  append_range(selection.slots, {near, n});
}

}  // namespace attend
