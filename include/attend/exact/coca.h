#pragma once
// Collinear constrained attention: in every rotary pair the key points where the query does, so that turning them apart
// can only lower the score of near tokens, and never raises it first.
//
//   w[i,.] = softmax over visible j of  scale * sum_p |q[i,p]|^2 g[j,p] cos((i - j) theta[p])
//   g[j,p] = max(0, (t[j,p,1] + t[j,p,2]) / 2)      theta[p] = base^(-2p / D)
//
// p is one of D / 2 pairs of elements, |q[i,p]|^2 the sum of their squares: the score of the query with the key
// k[i,j] = g[j] q[i] under rotary embeddings, of which there is one for every pair of tokens. It is computed as the dot
// product of (|q|^2 cos(i theta), |q|^2 sin(i theta)) with (g cos(j theta), g sin(j theta)), so no such key is made.
//
// Source   Zhu et al. 2023, arXiv:2309.08646, section 2 (collinear constraint, non-negative T with equal halves)
//          and 2.4 (T is shared by the pair). Differs from its authors' code, which multiplies q with the already
//          rotated t: that score depends on i and j other than through i - j.
// Shapes   q [B,Hq,Tq,D] f32   k [B,Hkv,Tk,D] (the projections t)   v [B,Hkv,Tk,Dv] f32, f16 or bf16   ->
//          out [B,Hq,Tq,Dv]   lse [B,Hq,Tq]; D even; keys at positions 0, 1, ..
// Cost     that of softmax attention and O((Tq + Tk) D). Memory O((Tq + Tk) D)
// Empty    a query that sees no key gets out = 0 and lse = -inf
// Errors   Error(kArgument) naming argument, value and rule; nothing is written before it is thrown. Error(kCancelled)
//          and Error(kMemory) may leave outputs partly written.
// Numerics f32, angles in double. Same bits: any.
#include "attend/exact/coca_options.h"
#include "attend/exact/softmax.h"

namespace attend {

void coca_attention(const Qkv& in, const CocaOptions& options, const AttnOut& out, Context& context);

// Writes `grad_in` from the gradients of out and lse, of which one may be absent; `forward` holds both outputs. With L =
// |q[i,p]|^2, and gradients dL and dg of what meets in the dot product, which softmax attention's backward pass gives:
//
//   dq[i,p,.] = 2 q[i,p,.] dL      dt[j,p,.] = dg / 2 where the mean of t[j,p] is above 0, else 0
//
// Source   the derivative of the definition
// Cost     that of softmax_attention_backward and O((Tq + Tk) D)
// Errors   as softmax_attention_backward
void coca_attention_backward(const Qkv& in, const CocaOptions& options, const AttnOut& forward,
                             const AttnOutGrad& grad_out, const AttnGrad& grad_in, Context& context);

}  // namespace attend
