#pragma once
// Blocks of queries against splits of keys: what each thread does, and in which order partials fold.
#include "attend/exact/softmax.h"
#include "exact/problem.h"

namespace attend::exact {

// Where a block's rows end up: normalised into `out`, or as they are into `partial`.
struct Destination {
  const AttnOut* out = nullptr;
  Partial* partial = nullptr;
  // Scores as the normaliser takes them, [batch, heads, queries, score_stride], by slot, where a query of the block
  // sees the key; null: they are not kept. Of one pass.
  float* scores = nullptr;
  int64_t score_stride = 0;
};

void run(const Problem& problem, KeyRange range, const Destination& to, Context& context);

}  // namespace attend::exact
