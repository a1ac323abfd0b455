#pragma once
// Options of attention with kernelised distances; see attend/exact/kerple.h for what they mean together.

namespace attend {

struct KerpleOptions {
  bool causal = false;
  double scale = 0;  // 0: 1/sqrt(D)
  bool log = false;  // the logarithmic kernel instead of a power
};

}  // namespace attend
