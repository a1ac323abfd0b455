#pragma once
// Keys and values that are coded anew as they age: a store of any kind for each stage of a codec, and one for the
// scales and offsets of keys by channel. Slots run from the oldest stage to the newest; a view has a run for each
// group.
//
// Memory   what the stages' stores hold; positions where they differ from slots; 80 bytes a group for its run.
// Cost     append O(rows) and one run; settle O(what it codes and moves), and the runs of all groups; keep O(groups and
//          the rows after the first dropped).
#include <memory>

#include "attend/kv/codec.h"
#include "attend/kv/store.h"

namespace attend {

// Opens a store for a codec: `stores` opens it, or its stages if the codec has any. `shape.codec` is the codec's type.
// Throws what `stores` does, and Error(kArgument) for stages that do not age, a group or stride below 1, types that are
// no stage's, and widths that are no multiples of 32.
//
// Of a staged store, settle() and keep() change head after head and stage after stage: where one fails for want of
// memory, keys that were to be coded or dropped may be, others are as they were, and the store holds what keys() says.
// append_coded() takes what keys() of a store with the same stages gives: stages in order, groups whole.
std::unique_ptr<Store> open_store(const StoreFactory& stores, const StoreShape& shape, const Codec& codec);

}  // namespace attend
