#pragma once
// lla: local linear attention. Softmax attention fits a constant to the values around a query; this fits a plane.
//
//   w[j] = softmax over visible j of scale * dot(q, k[j])     z[j] = k[j] - q
//   (o, S) = argmin over o, S of  sum_j w[j] |v[j] - o - S z[j]|^2 + ridge |S|^2,   that is
//   m = sum_j w[j] z[j]     M = sum_j w[j] z[j] z[j]'     rho = (M + ridge I)^-1 m
//   o = sum_j w[j] (1 - dot(rho, z[j])) v[j] / sum_j w[j] (1 - dot(rho, z[j]))
//
//   ridge to infinity gives softmax attention, a scale near 0 ridge regression of v on k with an intercept.
//
// Source   Zuo et al. 2025, arXiv:2510.01450, section 3 (estimator) and 4 (matrix-free conjugate gradients, blocks).
//          Differs: weights are normalised first, so that `ridge` is relative to their sum, as in the authors' code; CG
//          stops at a relative residual of 1e-6 or after 2 D + 16 steps, each row by itself; forward only.
// Shapes   q [B,Hq,Tq,D] f32   k [B,Hkv,Tk,D]   v [B,Hkv,Tk,Dv] f32, f16 or bf16   ->   out [B,Hq,Tq,Dv]
// Cost     4 D flops for each visible pair and step of CG, and 2 (2 D + Dv); memory
//          O(threads * (16 Tk + Tk (2 D + Dv)))
// Empty    a query that sees no key gets 0
// Errors   Error(kArgument); nothing is written before it is thrown. Error(kCancelled) and Error(kMemory) may leave
//          outputs partly written.
// Numerics f32 products, f64 scalars; the error grows with the condition (ridge + |z|^2) / ridge. Same bits: any.
#include "attend/exact/lla_options.h"
#include "attend/exact/softmax.h"

namespace attend {

// `sink_logits` of `in` must be absent.
void lla_attention(const Qkv& in, const LlaOptions& options, const View& out, Context& context);

}  // namespace attend
