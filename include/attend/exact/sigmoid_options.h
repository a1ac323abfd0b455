#pragma once
// Options of sigmoid attention; see attend/exact/sigmoid.h.

namespace attend {

struct SigmoidOptions {
  bool causal = false;
  double scale = 0;  // 0: 1/sqrt(D)
  double bias = 0;   // added to -ln n
};

}  // namespace attend
