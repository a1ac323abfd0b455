#pragma once
// Options of collinear constrained attention; see attend/exact/coca.h for what they mean together.

namespace attend {

struct CocaOptions {
  bool causal = false;
  double scale = 0;          // 0: 1/sqrt(D)
  double base = 10000;       // of the rotary frequencies
  bool interleaved = false;  // pairs (x[2p], x[2p + 1]) instead of (x[p], x[p + D / 2])
};

}  // namespace attend
