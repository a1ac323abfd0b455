#pragma once
#include "attend/tensor/registry.h"

namespace attend {

// Adds the stores and codecs of this room.
void register_kv(Registry& registry);

}  // namespace attend
