#pragma once
// Options of hierarchical self-attention; see attend/exact/hsa.h.
#include <cstdint>

namespace attend {

struct HsaOptions {
  int64_t branch = 8;  // children of a node of the balanced tree, at least 2; as many as tokens: a flat tree
  double scale = 0;    // 0: 1/sqrt(D)
};

}  // namespace attend
