#pragma once
// Options of local linear attention; see attend/exact/lla.h.

namespace attend {

struct LlaOptions {
  bool causal = false;
  double scale = 0;   // 0: 1/sqrt(D)
  double ridge = 10;  // penalty of the slope, above 0
};

}  // namespace attend
