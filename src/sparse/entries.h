#pragma once
// The entries of this room, one function a file; register_sparse() calls them all.
#include "attend/tensor/registry.h"

namespace attend {

void register_graph(Registry& registry);
void register_infllm(Registry& registry);
void register_ltri(Registry& registry);
void register_magicpig(Registry& registry);
void register_omnilive(Registry& registry);
void register_quest(Registry& registry);
void register_recycling(Registry& registry);

}  // namespace attend
