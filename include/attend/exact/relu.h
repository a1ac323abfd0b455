#pragma once
// relu: keys are weighted by the positive part of their score over the number of keys.
//
//   o[i] = sum over visible j of max(0, scale * dot(q[i], k[j])) / n v[j]     n: keys that query i sees
//
// Source   Wortsman et al. 2023, arXiv:2309.08586, equation 2 with alpha = 1 and h = ReLU. Differs: n is the number of
//          keys that the query sees, not the length of the text, so that a text cut into chunks gives one result.
// Shapes   q [B,Hq,Tq,D] f32   k [B,Hkv,Tk,D]   v [B,Hkv,Tk,Dv] f32, f16 or bf16   ->   out [B,Hq,Tq,Dv]
// Cost     that of softmax attention without the exponentials
// Empty    a query that sees no key gets 0
// Errors   those of softmax_attention
// Numerics f32 accumulation; |out - reference| <= bound::pointwise(...). Same bits: any.
#include "attend/exact/relu_options.h"
#include "attend/exact/softmax.h"

namespace attend {

// `sink_logits` and `documents` of `in` must be absent.
void relu_attention(const Qkv& in, const ReluOptions& options, const View& out, Context& context);

// Gradients with respect to the inputs, f32, in the shapes of the inputs; each may be absent.
struct ReluGrad {
  View q = {}, k = {}, v = {}, bias = {};  // bias: summed over axes of 1
};

// Writes `grad_in` from the gradient of out, [B,Hq,Tq,Dv] f32. At a score of 0 the slope is 0.
//
//   ds[i,j] = [s > 0] / n dot(d_out[i], v[j])     dq[i] = scale sum_j ds k[j]   dk[j] = scale sum_i ds q[i]
//   dv[j] = sum_i max(0, s) / n d_out[i]
//
// Source   the derivative of the definition
// Cost     2 (3 D + 2 Dv) flops for each pair; memory O(threads * ((Tk + 64) (D + Dv) + 2^20)). Threads take kv heads;
//          sums are in ascending order of head and query, so that bits don't depend on threads.
// Errors   as above
void relu_attention_backward(const Qkv& in, const ReluOptions& options, const View& grad_out, const ReluGrad& grad_in,
                             Context& context);

}  // namespace attend
