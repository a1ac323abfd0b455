#include "attend/study/kept.h"

namespace attend {

std::vector<float> KeptMap::shares() const {
  std::vector<float> held(static_cast<size_t>(tokens));
  for (const std::vector<int32_t>& head : positions)
    for (int32_t position : head) held[static_cast<size_t>(position)] += 1;
  for (float& share : held) share /= static_cast<float>(positions.size());
  return held;
}

KeptMap kept_map(const Ensemble& session, const Graph& graph) {
  KeptMap map{.layers = static_cast<int>(graph.layers.size()),
              .kv_heads = graph.layers.front().kv_heads,
              .tokens = session.position(),
              .positions = {}};
  for (int layer = 0; layer < map.layers; ++layer)
    for (int head = 0; head < map.kv_heads; ++head)
      map.positions.push_back(session.sessions().front().kept_positions(layer, head));
  return map;
}

}  // namespace attend
