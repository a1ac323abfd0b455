#pragma once
// Options of attention with bucketed distances; see attend/exact/t5_bias.h for what they mean together.
#include <cstdint>

namespace attend {

struct T5BiasOptions {
  bool causal = false;
  double scale = 0;            // 0: 1/sqrt(D); T5 itself uses 1
  int64_t max_distance = 128;  // tokens; from here on all distances share the last bucket
};

}  // namespace attend
