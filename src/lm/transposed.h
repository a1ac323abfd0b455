#pragma once
// The matrix of a product's backward pass: g_x = g_y * w.
#include "attend/simd/product.h"

namespace attend {

// k rows of n columns, the dequantised values of `matrix` as f32. Throws Error(kMemory), Error(kCancelled).
PackedWeight transposed(const PackedWeight& matrix, Context& context);

}  // namespace attend
