#pragma once
// Options of attention with contextual positions; see attend/exact/cope.h for what they mean together.

namespace attend {

struct CopeOptions {
  double scale = 0;  // 0: 1/sqrt(D)
};

}  // namespace attend
