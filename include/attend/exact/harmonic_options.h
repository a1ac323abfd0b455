#pragma once
// Options of rotary attention with a harmonic series over distances; see attend/exact/harmonic.h.
#include "attend/exact/rope_options.h"

namespace attend {

struct HarmonicOptions {
  bool causal = false;
  double scale = 0;    // 0: 1/sqrt(D)
  bool added = false;  // the series' sum is taken off the score, instead of its term being a factor of it
  RopeOptions rope = {};
};

}  // namespace attend
