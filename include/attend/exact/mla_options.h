#pragma once
// Options of multi-head latent attention; see attend/exact/mla.h.
#include <cstdint>

namespace attend {

struct MlaOptions {
  bool causal = false;
  double scale = 0;  // 0: 1/sqrt(D), D the width of an expanded head
  int64_t rope = 0;  // last elements of a query head that meet the cache's rotary part; below D
};

}  // namespace attend
