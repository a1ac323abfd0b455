#pragma once
// Which tokens of a text a policy still holds, by layer and kv head.
#include <cstdint>
#include <vector>

#include "attend/lm/ensemble.h"

namespace attend {

struct KeptMap {
  int layers = 0, kv_heads = 0;
  int64_t tokens = 0;                           // seen
  std::vector<std::vector<int32_t>> positions;  // ascending; of layer l and kv head h at l * kv_heads + h

  bool empty() const { return positions.empty(); }
  // Of each token, the share of layers and kv heads that hold it.
  std::vector<float> shares() const;
};

// What a session holds now; of several readings, the first. Linear in the keys held.
KeptMap kept_map(const Ensemble& session, const Graph& graph);

}  // namespace attend
