#pragma once
// How a budget is shared out among layers and heads.
#include <cstdint>
#include <span>
#include <vector>

#include "attend/tensor/operator.h"

namespace attend {

// The kv heads of one layer whose keys are about to be ranked.
struct LayerScores {
  int layer, layers;
  int64_t budget;                             // keys a head, of the retention
  std::span<const std::vector<float>> heads;  // scores by slot, of each kv head (Ranking::rank)
};

struct Allocator : Component {
  // Keys that each kv head keeps. Sums over layers and heads are at most the number of heads times the budget.
  virtual void share(const LayerScores& scores, std::span<int64_t> budgets) const = 0;
};

}  // namespace attend
