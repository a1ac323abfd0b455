#pragma once
// Options of softmax attention; see attend/exact/softmax.h for what they mean together.
#include <cstdint>

#include "attend/tensor/compute.h"

namespace attend {

struct SoftmaxOptions {
  bool causal = false;
  double scale = 0;                 // 0: 1/sqrt(D)
  int64_t window = 0;               // tokens, counting the query's own; 0: no limit
  int64_t sinks = 0;                // tokens at the start that a window keeps visible
  int64_t prefix = 0;               // tokens at the start that every query sees
  double softcap = 0;               // scores become softcap * tanh(score / softcap); 0: none
  Compute compute = Compute::kF32;  // of the forward pass; the backward pass is f32
};

}  // namespace attend
