#pragma once
// Options of affine-scaled attention; see attend/exact/affine.h.

namespace attend {

struct AffineOptions {
  bool causal = false;
  double scale = 0;    // 0: 1/sqrt(D)
  double average = 1;  // moving average of alpha over training
};

}  // namespace attend
