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
//          stops at a relative residual of 1e-6 or after 2 D + 16 steps, each row by itself.
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

// Writes the gradients of q, k and v in `grad_in` from that of out, f32 [B,Hq,Tq,Dv]. With p[j] = 1 - dot(rho, z[j])
// and n = sum_j w[j] p[j] of a query,
//
//   a[j] = dot(dout, v[j] - o) / n     u = -(M + ridge I)^-1 sum_j a[j] w[j] z[j]     t[j] = a[j] + dot(u, z[j])
//   ds[j] = w[j] (p[j] t[j] - sum of w p t)     dz[j] = w[j] (p[j] u - t[j] rho)     dv[j] = w[j] p[j] / n dout
//   dq = sum_j scale ds[j] k[j] - dz[j]         dk[j] = scale ds[j] q + dz[j]
//
// Source   the derivative of the definition; that of the slope by the equations it solves, whose matrix is symmetric
// Cost     about twice that of lla_attention; memory O(threads * (64 Tk + Tk (2 D + 3 Dv)))
// Errors   as above; Error(kArgument) also for key views and for a gradient of a bias
void lla_attention_backward(const Qkv& in, const LlaOptions& options, const View& grad_out, const AttnGrad& grad_in,
                            Context& context);

}  // namespace attend
