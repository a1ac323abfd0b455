#pragma once
// sinkhorn: attention with a doubly stochastic matrix. Rows and columns of exp(scores) are normalised in turn.
//
//   o[i] = sum_j exp(s[i,j] + f[i] + g[j]) v[j]     s[i,j] = scale * dot(q[i], k[j])
//   f = g = 0, then `iterations` times, rows first:  f[i] = -ln sum_j exp(s[i,j] + g[j])
//                                              or    g[j] = ln(Tq / Tk) - ln sum_i exp(s[i,j] + f[i])
//
//   One iteration is softmax attention. In the limit rows sum to 1 and columns to Tq / Tk.
//
// Source   Sander et al. 2021, arXiv:2110.11773, section 3 (equation 2, in the log domain). Differs: Tq and Tk may
//          differ.
// Shapes   q [B,Hq,Tq,D] f32   k [B,Hkv,Tk,D]   v [B,Hkv,Tk,Dv] f32, f16 or bf16   ->   out [B,Hq,Tq,Dv]
// Cost     one pass of softmax attention each iteration (those but the last without values); memory
//          O(B Hq (Tq + Tk)), never Tq * Tk
// Empty    without keys out = 0
// Errors   Error(kArgument); nothing is written before it is thrown. Error(kCancelled) and Error(kMemory) may leave
//          outputs partly written.
// Numerics f32; each iteration adds the error of an lse to the scores. Same bits: for whole texts (a column sees all
//          queries), whatever the batch and threads.
#include "attend/exact/sinkhorn_options.h"
#include "attend/exact/softmax.h"

namespace attend {

// Only q, k and v of `in` may be given.
void sinkhorn_attention(const Qkv& in, const SinkhornOptions& options, const View& out, Context& context);

// Writes the gradients of q, k and v from the gradient of out, [B,Hq,Tq,Dv] f32; the potentials are computed again. From
// the last step back, with P = exp(s + f + g) and G[i,j] = dot(dO[i], v[j]):
//
//   dg[j] = sum_i P[i,j] G[i,j]   (less its rows' means where the last step was one of rows)
//   of g[j] = ln(Tq / Tk) - lse:  ds[i,j] -= C[i,j] dg[j],  df[i] -= sum_j C[i,j] dg[j],  C the softmax over i of s + f
//   of f[i] = -lse, likewise with rows and columns exchanged
//
// Source   the derivative of the definition, through all iterations
// Cost     a pass of softmax attention and one of its backward pass each iteration; memory O(B Hq (iterations (Tq +
//          Tk) + Tq (D + Dv)) + B Hkv Tk D)
// Errors   as above, and for a gradient that is not of its argument's shape
void sinkhorn_attention_backward(const Qkv& in, const SinkhornOptions& options, const View& grad_out,
                                 const AttnGrad& grad_in, Context& context);

}  // namespace attend
