#pragma once
// The entries of this room, one function a file; register_exact() calls them all.
#include "attend/tensor/registry.h"

namespace attend {

void register_kerple(Registry& registry);

}  // namespace attend
