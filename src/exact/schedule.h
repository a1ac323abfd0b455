#pragma once
// Blocks of queries against splits of keys: what each thread does, and in which order partials fold.
#include "attend/exact/softmax.h"
#include "exact/problem.h"

namespace attend::exact {

// Where a block's rows end up: normalised into `out`, or as they are into `partial`.
struct Destination {
  const AttnOut* out = nullptr;
  Partial* partial = nullptr;
};

void run(const Problem& problem, KeyRange range, const Destination& to, Context& context);

}  // namespace attend::exact
