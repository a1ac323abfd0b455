#pragma once
// Options of attention with interpolated distances; see attend/exact/fire.h for what they mean together.

namespace attend {

struct FireOptions {
  bool causal = false;
  double scale = 0;        // 0: 1/sqrt(D)
  double rate = 0.1;       // c: how fast the logarithm grows, per token
  double threshold = 512;  // L, in tokens: queries before it are interpolated as if they stood on it
};

}  // namespace attend
