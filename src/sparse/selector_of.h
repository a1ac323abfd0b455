#pragma once
// What selectors have in common: a component that opens an index with its options, and one thing for each kv head.
#include <memory>
#include <vector>

#include "attend/sparse/selector.h"

namespace attend {

// Keys from which selectors with a budget pay, in budgets: those measured need less than five.
inline constexpr int64_t kPayingBudgets = 8;

template <class Index, class Options>
struct SelectorOf : Selector {
  explicit SelectorOf(const Options& options) : o(options) {}
  std::unique_ptr<SelectorIndex> open(const SelectorShape& shape) const override {
    return std::make_unique<Index>(shape, o);
  }
  bool shares_slots() const override {
    if constexpr (requires { Index::kSharesSlots; }) return Index::kSharesSlots;
    return false;
  }
  bool gives_log_weights() const override {
    if constexpr (requires { Index::kGivesLogWeights; }) return Index::kGivesLogWeights;
    return false;
  }
  int64_t pays_from() const override {
    if constexpr (requires(const Options& x) { Index::pays_from(x); }) return Index::pays_from(o);
    return 0;
  }
  Options o;
};

// A T for each kv head of each layer.
template <class T>
class PerHead {
 public:
  explicit PerHead(const SelectorShape& shape)
      : kv_heads_(static_cast<size_t>(shape.kv_heads)), all_(static_cast<size_t>(shape.layers) * kv_heads_) {}
  T& at(int layer, int kv_head) { return all_[static_cast<size_t>(layer) * kv_heads_ + static_cast<size_t>(kv_head)]; }
  const T& at(int layer, int kv_head) const {
    return all_[static_cast<size_t>(layer) * kv_heads_ + static_cast<size_t>(kv_head)];
  }
  void clear() {
    for (T& each : all_) each = T();
  }
  auto begin() { return all_.begin(); }
  auto end() { return all_.end(); }
  auto begin() const { return all_.begin(); }
  auto end() const { return all_.end(); }

 private:
  size_t kv_heads_;
  std::vector<T> all_;
};

}  // namespace attend
