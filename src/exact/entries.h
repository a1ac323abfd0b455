#pragma once
// The entries of this room, one function a file; register_exact() calls them all.
#include "attend/tensor/registry.h"

namespace attend {

void register_coca(Registry& registry);
void register_cope(Registry& registry);
void register_dca(Registry& registry);
void register_fire(Registry& registry);
void register_harmonic(Registry& registry);
void register_kerple(Registry& registry);
void register_rcmha(Registry& registry);
void register_relative(Registry& registry);
void register_rope(Registry& registry);
void register_t5_bias(Registry& registry);
void register_urpe(Registry& registry);

}  // namespace attend
