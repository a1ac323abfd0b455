#include "by_position.h"

#include <limits>

namespace attend {

bool sees_all(const Operator& mechanism) {
  const std::vector<KeyRange> needed = mechanism.needed_from(std::numeric_limits<int32_t>::max());
  return needed.size() == 1 && needed[0] == KeyRange{0, kNoEnd};
}

bool goes_by_positions(const Operator& mechanism) {
  return !sees_all(mechanism) || mechanism.turns() || !mechanism.gives_weights();
}

}  // namespace attend
