#pragma once
// What a model does to rows between products and attention, for one instruction set. Every function works on one row
// in a fixed order, so that a result depends on nothing but that row. Cost O(n), no errors.
#include <cstdint>

#include "attend/tensor/dtype.h"
#include "attend/tensor/isa.h"

namespace attend {

struct RowOps {
  // y = x * weight / sqrt(mean(x^2) + epsilon); the mean in double. y may be x. (Zhang & Sennrich 2019,
  // arXiv:1910.07467)
  void (*rms_norm)(const float* x, const float* weight, int64_t n, double epsilon, float* y);
  // gate = silu(gate) * up, silu(x) = x / (1 + exp(-x)).
  void (*silu_multiply)(float* gate, const float* up, int64_t n);
  // gate = gelu(gate) * up, gelu(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))). (arXiv:1606.08415)
  void (*gelu_multiply)(float* gate, const float* up, int64_t n);
  void (*add)(float* x, const float* y, int64_t n);                                        // x += y
  void (*scale)(float* x, float factor, int64_t n);                                        // x *= factor
  void (*rotate_pairs)(float* x, const float* cosine, const float* sine, int64_t pairs);   // (x[2i], x[2i+1])
  void (*rotate_halves)(float* x, const float* cosine, const float* sine, int64_t pairs);  // (x[i], x[i + pairs])
  // Stores n floats as f32, f16 or bf16, rounded to nearest even, or as quantise_row() does (n a multiple of 32).
  // Throws Error(kUnsupported) for other types.
  void (*narrow)(const float* x, int64_t n, DType type, void* out);
  // Cosines and sines of p + q from those of p and q, in double, stored as f32.
  void (*add_angles)(const double* cosine_p, const double* sine_p, const double* cosine_q, const double* sine_q,
                     int64_t n, float* cosine, float* sine);
  // ln of the sum of exp(x). Not finite if an x is not.
  double (*log_sum_exp)(const float* x, int64_t n);
  // KL(p || q) in nats of p = exp(x - x_lse) and q = exp(y - y_lse).
  double (*divergence)(const float* x, double x_lse, const float* y, double y_lse, int64_t n);
  // Index of the largest x, the lowest among equals.
  int64_t (*largest)(const float* x, int64_t n);
};

const RowOps& row_ops(Isa isa);

}  // namespace attend
