#pragma once
// Options of universal relative attention; see attend/exact/urpe.h for what they mean together.

namespace attend {

struct UrpeOptions {
  bool causal = false;
  double scale = 0;  // 0: 1/sqrt(D)
};

}  // namespace attend
