#pragma once
// Options of softplus attention with re-weighting; see attend/exact/lssar.h.
#include <cstdint>

namespace attend {

struct LssarOptions {
  bool causal = false;
  double scale = 0;    // of the cosine; 0: ln D * ln n
  int64_t power = 15;  // of the re-weighting; 0: none (LSSA)
};

}  // namespace attend
