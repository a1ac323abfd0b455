#pragma once
// Options of doubly stochastic attention; see attend/exact/sinkhorn.h.
#include <cstdint>

namespace attend {

struct SinkhornOptions {
  double scale = 0;        // 0: 1/sqrt(D)
  int64_t iterations = 3;  // normalisations, of rows first and then of columns and rows in turn; 1: softmax attention
};

}  // namespace attend
