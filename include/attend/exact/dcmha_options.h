#pragma once
// Options of dynamically composable multi-head attention; see attend/exact/dcmha.h.

namespace attend {

struct DcmhaOptions {
  bool causal = false;
  double scale = 0;  // 0: 1/sqrt(D)
};

}  // namespace attend
