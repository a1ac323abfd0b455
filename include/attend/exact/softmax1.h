#pragma once
// softmax1: softmax attention with 1 more in the denominator, so that a query may attend to nothing.
//
//   o[i] = sum over visible j of exp(s[i,j]) v[j] / (1 + sum over visible j of exp(s[i,j]))     s = scale * dot(q[i],
//   k[j])
//
// Source   Miller 2023, "Attention Is Off By One"; equation 2 of arXiv:2602.23057. It is a sink logit of 0.
// Shapes   q [B,Hq,Tq,D] f32   k [B,Hkv,Tk,D]   v [B,Hkv,Tk,Dv] f32, f16 or bf16   ->   out [B,Hq,Tq,Dv]  lse [B,Hq,Tq]
// Cost     that of softmax attention, forward and backward
// Empty    a query that sees no key gets out = 0 and lse = -inf
// Errors   those of softmax_attention
// Numerics |out - reference| <= bound::softmax(...). Same bits: any.
#include "attend/exact/softmax.h"
#include "attend/exact/softmax1_options.h"

namespace attend {

// `sink_logits` of `in` must be absent.
void softmax1_attention(const Qkv& in, const Softmax1Options& options, const AttnOut& out, Context& context);

// As softmax_attention_backward (attend/exact/softmax.h); a gradient of sink_logits can't be asked for.
void softmax1_attention_backward(const Qkv& in, const Softmax1Options& options, const AttnOut& forward,
                                 const AttnOutGrad& grad_out, const AttnGrad& grad_in, Context& context);

}  // namespace attend
