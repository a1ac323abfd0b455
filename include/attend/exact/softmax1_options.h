#pragma once
// Options of softmax-off-by-one attention; see attend/exact/softmax1.h.

namespace attend {

struct Softmax1Options {
  bool causal = false;
  double scale = 0;  // 0: 1/sqrt(D)
};

}  // namespace attend
