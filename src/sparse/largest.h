#pragma once
// The largest of many scores, without sorting them.
#include <cstdint>
#include <span>
#include <vector>

#include "attend/tensor/isa.h"

namespace attend {

// Indices of the k largest scores, ascending; of equal ones the last. 0 <= k <= scores.size(); a NaN counts as
// infinity. `order` is scratch.
// Cost     32 passes over the scores, one bit of the k-th largest each; no branch depends on a score.
void largest(std::span<const float> scores, int64_t k, Isa isa, std::vector<int32_t>& order,
             std::vector<int64_t>& chosen);

}  // namespace attend
