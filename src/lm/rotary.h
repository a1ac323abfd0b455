#pragma once
// Cosines and sines of rotary positions. Angles are doubles: those of position 64 a + b come from those of 64 a and of
// b by one complex product, so a position's angles never depend on where a chunk began.
#include <cstdint>
#include <vector>

#include "attend/lm/graph.h"
#include "attend/simd/row_ops.h"

namespace attend {

class RotaryAngles {
 public:
  explicit RotaryAngles(const Rotary& rotary);

  const Rotary& rotary() const { return rotary_; }
  int64_t pairs() const { return rotary_.dims / 2; }

  // cosine and sine [rows, pairs] of the positions first, first + 1, ..
  void fill(int64_t first, int64_t rows, const RowOps& ops, float* cosine, float* sine) const;

 private:
  static constexpr int64_t kStep = 64;

  Rotary rotary_;
  std::vector<double> frequency_;      // [pairs]
  std::vector<double> cosine_, sine_;  // [kStep, pairs] of the positions 0 .. kStep - 1
};

}  // namespace attend
