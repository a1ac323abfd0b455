#pragma once
// The softmax denominators of the columns of the score matrix: attention with queries and keys exchanged.
#include "attend/exact/softmax.h"
#include "exact/problem.h"

namespace attend::exact {

class Columns {
 public:
  // Views are those of a checked problem, keys as an array. Throws Error(kMemory).
  Columns(const Problem& p, const View& k, Context& context);

  // out[(b * Hq + h) * Tk + j] = ln sum over i of exp(scale * q[h,i] . k[j] + row[(b * Hq + h) * Tq + i]); row may be
  // null: 0.
  void lse(const float* row, float* out, Context& context) const;

 private:
  const Problem& p_;
  int64_t keys_;
  Buffer widened_;
  View k_;  // [B, Hkv, Tk, D] f32
};

// Of query heads those at one place of their groups, one a kv head; empty if `x` is.
View heads_of(View x, int64_t place, const Problem& p);

}  // namespace attend::exact
