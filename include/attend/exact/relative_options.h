#pragma once
// Options of relative attention; see attend/exact/relative.h for what they mean together.

namespace attend {

struct RelativeOptions {
  bool causal = false;
  double scale = 0;   // 0: 1/sqrt(D)
  bool past = false;  // tables hold the distances -K..0 only; needs causal
};

}  // namespace attend
