#pragma once
// Keys and values of a view in another coding.
#include <cstdint>
#include <span>

#include "attend/kv/codec.h"
#include "attend/tensor/buffer.h"
#include "attend/tensor/isa.h"
#include "attend/tensor/key_view.h"

namespace attend::kv {

struct Recoded {
  Buffer k, v, scales;  // of keys by channel: scales of all groups, then offsets
  KeyRun rows;          // without scales
  KeyRun groups;        // a row a group: scales as keys, offsets as values, f16; none where keys are not by channel
};

// The keys of `old` from slot `first` on, in groups of so many. Widths are multiples of 32. Cost O(keys (d + dv)).
// Throws Error(kMemory).
Recoded recode(const KeyView& old, int64_t first, std::span<const int32_t> groups, const CodecStage& coding, int64_t d,
               int64_t dv, Isa isa);

}  // namespace attend::kv
