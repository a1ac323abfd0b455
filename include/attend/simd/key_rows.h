#pragma once
// Keys and values of a view as f32, whatever their runs and codes.
#include <cstdint>

#include "attend/tensor/isa.h"
#include "attend/tensor/key_view.h"

namespace attend {

// Rows [first, first + count) of the keys, or of the values, [count, width]. `width` is that of a whole row.
void read_keys(const KeyView& keys, int64_t first, int64_t count, int64_t width, Isa isa, float* to);
void read_values(const KeyView& keys, int64_t first, int64_t count, int64_t width, Isa isa, float* to);

}  // namespace attend
