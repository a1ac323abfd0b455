#pragma once
// Options of entmax attention; see attend/exact/entmax.h.

namespace attend {

struct EntmaxOptions {
  bool causal = false;
  double scale = 0;    // 0: 1/sqrt(D)
  double alpha = 1.5;  // in [1.05, 2]; towards 1: softmax, 2: sparsemax
};

}  // namespace attend
