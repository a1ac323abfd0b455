#pragma once
// The entries of this room, one function a file; register_kv() calls them all.
#include "attend/tensor/registry.h"

namespace attend {

void register_stores(Registry& registry);
void register_allocators(Registry& registry);
void register_duo(Registry& registry);
void register_expected_retention(Registry& registry);
void register_fastgen(Registry& registry);
void register_count_retentions(Registry& registry);
void register_merging_retentions(Registry& registry);
void register_norm_retentions(Registry& registry);
void register_weight_retentions(Registry& registry);
void register_window_retentions(Registry& registry);

}  // namespace attend
