#pragma once
// Rows of 16-bit floats as f32.
#include "attend/tensor/buffer.h"
#include "attend/tensor/context.h"
#include "attend/tensor/isa.h"
#include "attend/tensor/view.h"

namespace attend::exact {

// n elements from an offset in elements on, of f32, f16 or bf16.
void widen(const View& x, int64_t offset, int64_t n, Isa isa, float* to);

// An array [B, H, T, D] as f32: itself, or a copy in `memory`. Throws Error(kMemory).
View widened(const View& x, Buffer& memory, Context& context);

}  // namespace attend::exact
