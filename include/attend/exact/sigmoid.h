#pragma once
// sigmoid: each key is weighted by itself; nothing is normalised.
//
//   o[i] = sum over visible j of sigmoid(scale * dot(q[i], k[j]) + bias - ln n) v[j]     n: keys that query i sees
//
// Source   Ramapuram et al. 2024, arXiv:2409.04431, equation 3 and section 3 (b = -ln n). Differs: n is the number of
//          keys that the query sees, not the length of the text, so that a text cut into chunks gives one result.
// Shapes   q [B,Hq,Tq,D] f32   k [B,Hkv,Tk,D]   v [B,Hkv,Tk,Dv] f32, f16 or bf16   ->   out [B,Hq,Tq,Dv]
// Cost     that of softmax attention
// Empty    a query that sees no key gets 0
// Errors   those of softmax_attention
// Numerics f32 accumulation; |out - reference| <= bound::pointwise(...). Same bits: any.
#include "attend/exact/sigmoid_options.h"
#include "attend/exact/softmax.h"

namespace attend {

// `sink_logits` and `documents` of `in` must be absent.
void sigmoid_attention(const Qkv& in, const SigmoidOptions& options, const View& out, Context& context);

// Gradients with respect to the inputs, f32, in the shapes of the inputs; each may be absent.
struct SigmoidGrad {
  View q = {}, k = {}, v = {}, bias = {};  // bias: summed over axes of 1
};

// Writes `grad_in` from the gradient of out, [B,Hq,Tq,Dv] f32.
//
//   ds[i,j] = w (1 - w) dot(d_out[i], v[j])     dq[i] = scale sum_j ds k[j]   dk[j] = scale sum_i ds q[i]
//   dv[j] = sum_i w d_out[i]
//
// Source   the derivative of the definition
// Cost     2 (3 D + 2 Dv) flops for each pair; memory O(threads * ((Tk + 64) (D + Dv) + 2^20)) and 3 rows of scores.
//          Threads take kv heads; sums are in ascending order of head and query, so that bits don't depend on threads.
// Errors   as above
void sigmoid_attention_backward(const Qkv& in, const SigmoidOptions& options, const View& grad_out,
                                const SigmoidGrad& grad_in, Context& context);

}  // namespace attend
