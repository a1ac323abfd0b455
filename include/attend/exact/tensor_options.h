#pragma once
// Options of tensor (triple-wise) attention; see attend/exact/tensor.h.
#include <cstdint>

namespace attend {

struct TensorOptions {
  bool causal = false;
  double scale = 0;   // 0: 1/sqrt(D)
  int64_t order = 0;  // 0: exact; else exp becomes its Taylor polynomial of degree 2 * order
};

}  // namespace attend
