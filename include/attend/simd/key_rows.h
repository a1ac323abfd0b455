#pragma once
// Keys and values of a view as f32, whatever their runs and codes.
#include <cstdint>

#include "attend/tensor/isa.h"
#include "attend/tensor/key_view.h"

namespace attend {

// Rows [first, first + count) of the keys, or of the values, [count, width]. `width` is that of a whole row.
void read_keys(const KeyView& keys, int64_t first, int64_t count, int64_t width, Isa isa, float* to);
void read_values(const KeyView& keys, int64_t first, int64_t count, int64_t width, Isa isa, float* to);

// Whether attention in f32 reads keys and values of these types one by one wherever they lie, asking memory for them
// well ahead, where a kv head has `rows` queries.
bool reads_scattered_rows(Isa isa, int64_t rows, DType k_type, DType v_type, int64_t d, int64_t dv);

}  // namespace attend
