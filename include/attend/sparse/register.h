#pragma once
#include "attend/tensor/registry.h"

namespace attend {

// Adds the selectors.
void register_sparse(Registry& registry);

}  // namespace attend
