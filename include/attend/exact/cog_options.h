#pragma once
// Options of Cog attention; see attend/exact/cog.h.

namespace attend {

struct CogOptions {
  bool causal = false;
  double scale = 0;  // 0: 1/sqrt(D)
};

}  // namespace attend
