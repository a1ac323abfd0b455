#pragma once
// Options of ReLU attention; see attend/exact/relu.h.

namespace attend {

struct ReluOptions {
  bool causal = false;
  double scale = 0;  // 0: 1/sqrt(D)
};

}  // namespace attend
