#pragma once
// Options of attention over sentinel tokens; see attend/exact/sentinel.h for what they mean together.

namespace attend {

struct SentinelOptions {
  double scale = 0;  // 0: 1/sqrt(D)
};

}  // namespace attend
