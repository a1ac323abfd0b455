#pragma once
#include "attend/tensor/registry.h"

namespace attend {
void register_exact(Registry& registry);
}
