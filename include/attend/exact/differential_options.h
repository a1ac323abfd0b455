#pragma once
// Options of differential attention; see attend/exact/differential.h.

namespace attend {

struct DifferentialOptions {
  bool causal = false;
  double scale = 0;     // 0: 1/sqrt(D)
  double lambda = 0.8;  // share of the noise, where it is not given for each query
};

}  // namespace attend
