#pragma once
// Rows of 16-bit floats as f32.
#include "attend/tensor/isa.h"
#include "attend/tensor/view.h"

namespace attend::exact {

// n elements from an offset in elements on, of f32, f16 or bf16.
void widen(const View& x, int64_t offset, int64_t n, Isa isa, float* to);

}  // namespace attend::exact
