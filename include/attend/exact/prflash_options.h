#pragma once
// Options of attention to blocks that are drawn by their distance; see attend/exact/prflash.h.
#include <cstdint>

namespace attend {

struct PrFlashOptions {
  double scale = 0;    // 0: 1/sqrt(D)
  int64_t block = 64;  // tokens of a side, at least 1; multiples of 64 cost least
  double power = 1;    // a block at distance n takes part with probability (1 + n)^-power, at least 0
  int64_t seed = 0;    // another seed draws another round
};

}  // namespace attend
