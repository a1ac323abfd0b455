#pragma once
// lssar: softplus attention, scaled by length and sharpened by a power; made to keep its shape on longer texts.
//
//   a[j] = softplus(ln D * ln n * cos(q[i], k[j])) over their sum     n: keys that query i sees
//   o[i] = sum over visible j of w[j] v[j]     w[j] = max(0, n a[j] - (n > 3 ? 1 : 0))^power over their sum, 0 if it is
//   0
//
//   power = 0 leaves w = a (LSSA).
//
// Source   Gao et al. 2025, arXiv:2501.13428, equations 4 and 5, power 15. The shift spares the first three rows of the
//          causal matrix, as there; here those are the rows that see at most three keys, causal or not.
// Shapes   q [B,Hq,Tq,D] f32   k [B,Hkv,Tk,D]   v [B,Hkv,Tk,Dv] f32, f16 or bf16   ->   out [B,Hq,Tq,Dv]
// Cost     2 (D + Dv) flops for each visible pair and about 60 for its weight; threads hold at most 64 rows of scores,
//          about 2 MB. Never Tq * Tk.
// Empty    a query that sees no key gets 0
// Errors   Error(kArgument); nothing is written before it is thrown. Error(kCancelled) and Error(kMemory) may leave
//          outputs partly written.
// Numerics f32; where no weight stands out from 1/n the power magnifies errors by power / (largest n a - 1). Same bits:
// any.
#include "attend/exact/lssar_options.h"
#include "attend/exact/softmax.h"

namespace attend {

// Of `in`, q, k, v, kv_lens and q_positions may be given.
void lssar_attention(const Qkv& in, const LssarOptions& options, const View& out, Context& context);

// Gradients, each written whole; null where not wanted.
struct LssarGrad {
  View q, k, v;  // as their arguments, f32
};

// Writes `grad_in` from the gradient of out, [B,Hq,Tq,Dv] f32; the weights are computed again. With c the cosine of a
// pair and dc its gradient, through both normalisations, the power and the softplus,
//
//   dq[i] = sum over j of dc (k[j] / |k[j]| - c q[i] / |q[i]|) / |q[i]|, and dk[j] likewise; 0 where a vector is.
//
//   The scale, which depends on n, has no gradient; nor has a weight where n a[j] = 1.
//
// Source   the derivative of the definition
// Cost     2 (3 D + 2 Dv) flops for each visible pair and about 120 for its weight. Memory O(B Hkv Tk) and, a thread,
//          O(Tk (D + Dv)).
// Errors   as above, and for a gradient that is not of its argument's shape
void lssar_attention_backward(const Qkv& in, const LssarOptions& options, const View& grad_out,
                              const LssarGrad& grad_in, Context& context);

}  // namespace attend
