#pragma once
// Options of probabilistic attention; see attend/exact/probabilistic.h.

namespace attend {

struct ProbabilisticOptions {
  double scale = 0;  // 0: 1/sqrt(D)
};

}  // namespace attend
