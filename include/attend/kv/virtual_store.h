#pragma once
// Keys and values at addresses reserved for the whole context, with memory only where keys lie: slot s of a head is row
// s of one run, which any kernel reads.
//
// Source   Prabhu et al. 2024, vAttention: Dynamic Memory Management for Serving LLMs without PagedAttention,
//          arXiv:2405.04437, 5. Differs: pages are those of the operating system (the paper's driver hands out 64 KB to
//          2 MB of a GPU), which come when a row is first written and need no thread that allocates ahead; they go back
//          as soon as keys are dropped, not when a later sequence wants them.
//
// Waste    less than one page of the system for the keys, and one for the values, of each layer and kv head.
// Cost     append O(rows); keep O(rows after the first dropped).
#include <memory>

#include "attend/kv/store.h"

namespace attend {

struct VirtualOptions {
  int64_t reserve = 0;  // tokens, 0: the shape's context
};

// Throws Error(kArgument) as check_store_shape(), and if neither reserve nor context is given; Error(kMemory) where so
// many addresses can't be reserved, and from append() for tokens beyond them.
std::unique_ptr<Store> make_virtual_store(const StoreShape& shape, const VirtualOptions& options = {});

}  // namespace attend
