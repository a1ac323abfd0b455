#pragma once
// Options of reversed attention; see attend/exact/reversed.h.

namespace attend {

struct ReversedOptions {
  double scale = 0;  // 0: 1/sqrt(D)
};

}  // namespace attend
