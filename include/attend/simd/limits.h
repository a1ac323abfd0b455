#pragma once
// Loops that run at the machine's own limits, for benchmarks to measure against.
#include <cstdint>

#include "attend/tensor/isa.h"
#include "attend/tensor/weight_type.h"

namespace attend {

struct LimitKernels {
  // `rounds` times 2 * lanes * 24 flops of independent fused multiply-adds; returns a value that depends on them.
  float (*multiply_add)(int64_t rounds) noexcept;
  int64_t flops_per_round;
  // exp of each element in place, by the exp that attention uses.
  void (*exponential)(float* x, int64_t count) noexcept;
  // Reads all bytes (a multiple of 1024) once and returns a value that depends on them.
  uint64_t (*read)(const void* data, int64_t bytes) noexcept;
  // Dot products of pairs of bf16, as multiply_add; null where the instruction set has none.
  float (*bf16_multiply_add)(int64_t rounds) noexcept = nullptr;
  int64_t bf16_flops_per_round = 0;
};

// Throws Error(kUnsupported) if this build has no kernels for it.
const LimitKernels& limit_kernels(Isa isa);

// The arithmetic of products with weights of one type, on registers alone: the integer dot products that the
// instruction set has for it, or f32 multiply-adds. `run` returns a value that depends on all of them.
struct ProductLimit {
  float (*run)(int64_t rounds) noexcept;
  int64_t multiply_adds;  // of a round
};

// Throws Error(kUnsupported) as above.
ProductLimit product_limit(Isa isa, WeightType type);

}  // namespace attend
