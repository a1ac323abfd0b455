#pragma once
// entmax: attention with exact zeros. Weights are the projection of the scores on the simplex, under Tsallis entropy.
//
//   o[i] = sum over visible j of w[j] v[j]     w[j] = max(0, (alpha - 1) s[j] - t)^(1 / (alpha - 1))
//   s[j] = scale * dot(q[i], k[j]), with the one t for which the weights sum to 1
//
//   alpha = 2 is sparsemax; alpha towards 1 is softmax.
//
// Source   Martins and Astudillo 2016, arXiv:1602.02068, section 2 (sparsemax); Peters et al. 2019, arXiv:1905.05702,
//          section 3 (entmax). Differs: t by Newton's method from below, which for alpha <= 2 never passes it and ends
//          after finitely many steps at alpha = 2; no sorting.
// Shapes   q [B,Hq,Tq,D] f32   k [B,Hkv,Tk,D]   v [B,Hkv,Tk,Dv] f32, f16 or bf16   ->   out [B,Hq,Tq,Dv]
// Cost     2 D flops for each visible pair and 2 Dv for each with a weight; a few passes over each row of scores.
//          Threads hold at most 64 rows of scores, about 2 MB. Never Tq * Tk.
// Empty    a query that sees no key gets 0
// Errors   Error(kArgument); nothing is written before it is thrown. Error(kCancelled) and Error(kMemory) may leave
//          outputs partly written.
// Numerics f32 products, t in f64; |out - reference| <= bound::entmax(...). Same bits: any.
#include "attend/exact/entmax_options.h"
#include "attend/exact/softmax.h"

namespace attend {

// `sink_logits` of `in` must be absent.
void entmax_attention(const Qkv& in, const EntmaxOptions& options, const View& out, Context& context);

// Gradients with respect to the inputs, f32, in the shapes of the inputs; each may be absent.
struct EntmaxGrad {
  View q = {}, k = {}, v = {}, bias = {};  // bias: summed over axes of 1
};

// Writes `grad_in` from the gradient of out, [B,Hq,Tq,Dv] f32. Keys without a weight get nothing from a row, and give
// it nothing.
//
//   g[i,j] = dot(d_out[i], v[j])      u = w^(2 - alpha) where w > 0, else 0
//   ds[i,j] = u (g - sum_j u g / sum_j u)
//   dq[i] = scale sum_j ds k[j]       dk[j] = scale sum_i ds q[i]       dv[j] = sum_i w d_out[i]
//
// Source   arXiv:1905.05702, section 3, the Jacobian of entmax (alpha = 2: arXiv:1602.02068, section 2.5)
// Cost     2 (3 D + 2 Dv) flops for each pair and the projection; memory O(threads * ((Tk + 64) (D + Dv) + 2^20)).
//          Threads take kv heads; sums are in ascending order of head and query, so that bits don't depend on threads.
// Errors   as above
void entmax_attention_backward(const Qkv& in, const EntmaxOptions& options, const View& grad_out,
                               const EntmaxGrad& grad_in, Context& context);

}  // namespace attend
