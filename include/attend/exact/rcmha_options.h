#pragma once
// Options of relative convolutional attention; see attend/exact/rcmha.h for what they mean together.

namespace attend {

struct RcmhaOptions {
  bool causal = false;
  double scale = 0;  // 0: 1/sqrt(D)
};

}  // namespace attend
