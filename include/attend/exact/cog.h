#pragma once
// cog: attention with negative weights. The sign of a score is the sign of its weight.
//
//   o[i] = sum over visible j of sign(s[i,j]) w[i,j] v[j]     w[i,.] = softmax over visible j of |s[i,j]|
//   s[i,j] = scale * dot(q[i], k[j])
//
// Source   Lv et al. 2024, arXiv:2411.07176, equation 2 and the authors' code.
// Shapes   q [B,Hq,Tq,D] f32   k [B,Hkv,Tk,D]   v [B,Hkv,Tk,Dv] f32, f16 or bf16   ->   out [B,Hq,Tq,Dv]  lse [B,Hq,Tq]
// Cost     that of softmax attention, forward and backward
// Empty    a query that sees no key gets out = 0 and lse = -inf
// Errors   those of softmax_attention
// Numerics f32 accumulation. A score within its own error of 0 may take either sign. Same bits: any. Gradients take
//          signs as constants.
#include "attend/exact/cog_options.h"
#include "attend/exact/softmax.h"

namespace attend {

void cog_attention(const Qkv& in, const CogOptions& options, const AttnOut& out, Context& context);

// As softmax_attention_backward (attend/exact/softmax.h); `forward` holds out and lse of cog_attention.
void cog_attention_backward(const Qkv& in, const CogOptions& options, const AttnOut& forward,
                            const AttnOutGrad& grad_out, const AttnGrad& grad_in, Context& context);

}  // namespace attend
