#pragma once
// Values of keys that are in a store, replaced.
#include <cstdint>
#include <span>

#include "attend/kv/store.h"
#include "attend/tensor/isa.h"

namespace attend {

// Gives the keys of these slots (ascending) of one head the values [slots, dv], coded as those that they replace. Keys,
// positions and all other values keep their bits; a paged store copies what it shares. Throws Error(kArgument) before
// anything changes; Error(kMemory), Error(kFile), and then the keys from the first of the slots on are lost. Cost: that
// of storing the keys from the first slot's group on once more.
void rewrite_values(Store& store, int layer, int head, std::span<const int64_t> slots, std::span<const float> values,
                    Isa isa);

}  // namespace attend
