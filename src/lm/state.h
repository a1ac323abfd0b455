#pragma once
// What a saved session belongs to.
#include <string>

#include "attend/lm/model.h"
#include "attend/tensor/registry.h"

namespace attend {

// What of a policy determines the keys and values that are stored, as text.
std::string state_policy(const Policy& policy, const Registry& registry);

// Name, sizes, compute mode and a digest (SHA-256) of weights: all vectors, and 64 rows of each matrix. O(those).
std::string fingerprint(const LanguageModel& model);

}  // namespace attend
