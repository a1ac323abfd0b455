#pragma once
// dcmha: dynamically composable multi-head attention. Heads exchange scores before the softmax and weights after it,
// through maps that depend on the query and on the key.
//
//   s[.,i,j] = compose_pre(scale * q[.,i] . k[.,j])     a[h,i,.] = softmax over visible j of s[h,i,j]
//   o[h,i] = sum over visible j of compose_post(a[.,i,j])[h] v[h,j]
//   compose(x)[h] = base(x)[h] + x[h] (qd[i,h] + kd[j,h])
//                   + sum_r q2[i,r,h] sum_g q1[i,r,g] x[g] + sum_r k2[j,r,h] sum_g k1[j,r,g] x[g]
//   base(x)[h] = sum_g w[g,h] x[g], or x[h] where w is not given
//
// Source   Xiao et al. 2024, arXiv:2405.08553, equation 5 and figure 2, one group of heads; the layer that makes the
//          factors from the tokens (projections, GELU, RMS normalisation, tanh) is not part of this.
// Shapes   q [B,Hq,Tq,D] f32   k [B,Hkv,Tk,D]   v [B,Hkv,Tk,Dv] f32, f16 or bf16; for pre and for post, all f32:
//          q1, q2 [B,Tq,R,Hq]  qd [B,Tq,Hq]  k1, k2 [B,Tk,R,Hq]  kd [B,Tk,Hq]  w (optional) [Hq,Hq]; R in 1..8
//          ->   out [B,Hq,Tq,Dv]
// Cost     for each visible pair and head 2 (D + Dv) + 16 R + 8 flops (and 4 Hq with w); fused: threads hold the scores
//          of all heads for a few queries, O(threads * Hq * 4 * Tk), and packed keys, O(B Hkv Tk (D + Dv))
// Empty    a query that sees no key gets 0
// Errors   Error(kArgument); nothing is written before it is thrown. Error(kCancelled) and Error(kMemory) may leave
//          outputs partly written.
// Numerics f32 accumulation; the error grows with the sums of |factors|. Same bits: any.
#include "attend/exact/dcmha_options.h"
#include "attend/exact/softmax.h"

namespace attend {

struct Compose {
  View q1, q2, qd, k1, k2, kd;
  View w = {};
};

// `sink_logits` of `attention` must be absent, and its keys be arrays.
struct DcmhaIn {
  Qkv attention;
  Compose pre, post;
};

void dcmha_attention(const DcmhaIn& in, const DcmhaOptions& options, const View& out, Context& context);

// Gradients, each written whole; null where not wanted.
struct DcmhaGrad {
  View q, k, v;       // as their arguments, f32
  Compose pre, post;  // as the factors
};

// Writes `grad_in` from the gradient of out, [B,Hq,Tq,Dv] f32; the weights are computed again. With x what goes into a
// map and dy the gradient of what comes out, of a pair (i, j):
//
//   dx[g] = sum_h w[g,h] dy[h] + dy[g] (qd[i,g] + kd[j,g]) + sum_r q1[i,r,g] q2[i,r].dy + sum_r k1[j,r,g] k2[j,r].dy
//   dq1[i,r,g] = sum_j x[g] q2[i,r].dy     dq2[i,r,h] = sum_j dy[h] q1[i,r].x     dqd[i,h] = sum_j x[h] dy[h]
//   dk1, dk2, dkd likewise, summed over i; dw[g,h] = sum over pairs of x[g] dy[h]
//
// Source   the derivative of the definition
// Cost     for each visible pair and head 2 (3 D + 2 Dv) + 32 R + 12 flops (and 8 Hq with w), and 16 R + 4 (and 2 Hq)
//          more for each side of whose factors a gradient is wanted. Memory: packed keys and values, and eight times the
//          gradients of what belongs to keys, for eight slices of the queries
// Errors   as above, and for a gradient that is not of its argument's shape
void dcmha_attention_backward(const DcmhaIn& in, const DcmhaOptions& options, const View& grad_out,
                              const DcmhaGrad& grad_in, Context& context);

}  // namespace attend
