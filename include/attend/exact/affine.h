#pragma once
// affine: softmax weights scaled and shifted by amounts that depend on the query.
//
//   o[i] = sum over visible j of (alpha[i] w[i,j] + (average - alpha[i]) / n) v[j]     n: keys that query i sees
//   w[i,.] = softmax over visible j of scale * dot(q[i], k[j])
//
// Source   Bae et al. 2026, arXiv:2602.23057, equations 6 to 8; alpha comes from the layer's gate, `average` from
//          training (equation 9). Differs: n is the number of keys that the query sees.
// Shapes   q [B,Hq,Tq,D] f32   k [B,Hkv,Tk,D]   v [B,Hkv,Tk,Dv] f32, f16 or bf16   alpha [B,Hq,Tq] f32   ->
//          out [B,Hq,Tq,Dv]
// Cost     that of softmax attention, and Dv additions a key and kv head for the means of the values
// Empty    a query that sees no key gets 0
// Errors   Error(kArgument); nothing is written before it is thrown. Error(kCancelled) and Error(kMemory) may leave
//          outputs partly written.
// Numerics means of values in f64; |out - reference| <= bound::affine(...). Same bits: any.
#include "attend/exact/affine_options.h"
#include "attend/exact/softmax.h"

namespace attend {

// Of `in`, q, k, v, kv_lens and q_positions may be given.
void affine_attention(const Qkv& in, const View& alpha, const AffineOptions& options, const View& out,
                      Context& context);

// Gradients with respect to the inputs, f32, in the shapes of the inputs; each may be absent.
struct AffineGrad {
  View q = {}, k = {}, v = {}, alpha = {};
};

// Writes `grad_in` from the gradient of out, [B,Hq,Tq,Dv] f32; the attention is computed again. Source: the derivative
// of the definition, the softmax's as in softmax_attention_backward (attend/exact/softmax.h). Cost: that of the
// attention, forward and backward; memory O(B Hq Tq Dv). Errors as above. Numerics: sums over values and over gradients
// of out in f64.
void affine_attention_backward(const Qkv& in, const View& alpha, const AffineOptions& options, const View& grad_out,
                               const AffineGrad& grad_in, Context& context);

}  // namespace attend
