#pragma once
// Options of dual chunk attention; see attend/exact/dca.h for what they mean together.
#include "attend/exact/rope_options.h"

namespace attend {

struct DcaOptions {
  double scale = 0;        // 0: 1/sqrt(D)
  int64_t context = 4096;  // c, in tokens: no distance of c or more is ever used
  int64_t chunk = 0;       // s, in tokens, below c; 0: three quarters of c
  RopeOptions rope = {};   // scaling that depends on the text's length is refused

  int64_t chunk_tokens() const { return chunk == 0 ? context * 3 / 4 : chunk; }
};

}  // namespace attend
