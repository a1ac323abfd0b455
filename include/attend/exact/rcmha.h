#pragma once
// Relative convolutional multi-head attention: queries, keys and values pass a causal depthwise convolution over the
// text, then attend relatively.
//
//   x~[t,c] = sum_w kernel_x[w,c] x[t - (W - 1) + w, c] + shift_x[c]      for x = q, k, v; rows before the first are 0
//   s[i,j]  = scale * ( dot(q~[i] + content[h], k~[j]) + dot(q~[i], keys[h,r]) + bias[h,r] )     r = clip(j - i, -K, K)
//   o[i]    = sum_j softmax over visible j of s[i,j]  v~[j]
//
// Row r + K of a table of 2 K + 1 rows stands for distance r. Kernels are shared by heads.
//
// Source   Sugiharto et al. 2023, arXiv:2308.03429 (RCMHA), and its authors' code: convolutions of width 3, tables of
//          2^12 distances to both sides, which nothing is clipped to.
// Shapes   those of relative attention (attend/exact/relative.h); kernel_q and kernel_k [W,D], kernel_v [W,Dv],
//          1 <= W <= 64, shift_q and shift_k [D], shift_v [Dv], all f32, shifts optional
// Cost     that of relative attention and 2 W flops an element of q, k and v. Memory O((Tq + Tk) D)
// Empty    a query that sees no key gets out = 0 and lse = -inf
// Errors   those of relative_attention; Error(kArgument) for kernels of other sizes
// Numerics f32. Same bits: for any threads and batch; queries must come whole, as each needs the W - 1 before it.
#include "attend/exact/rcmha_options.h"
#include "attend/exact/relative.h"

namespace attend {

struct RcmhaKernels {
  View kernel_q, kernel_k, kernel_v, shift_q = {}, shift_k = {}, shift_v = {};
};

// `tables`: keys, and optional content and bias.
void rcmha_attention(const Qkv& in, const RcmhaKernels& kernels, const RelativeTables& tables,
                     const RcmhaOptions& options, const AttnOut& out, Context& context);

// Gradients with respect to the inputs, f32, in the shapes of the inputs; each may be absent.
struct RcmhaGrad {
  View q = {}, k = {}, v = {};
  RcmhaKernels kernels = {};
  View relative_keys = {}, content_bias = {}, distance_bias = {};
};

// Writes `grad_in` from the gradients of out and lse, of which one may be absent: relative attention's backward pass,
// whose gradients of x~ go back through the convolutions.
//
//   dx[t] = sum_w kernel_x[w] dx~[t + (W - 1) - w]
//   d kernel_x[w] = sum of dx~[t] x[t - (W - 1) + w]     d shift_x = sum of dx~[t], over texts, heads and t
//
// Source   the derivative of the definition
// Cost     that of relative_attention_backward and 4 W flops an element of q, k and v. Memory O((Tq + Tk) D)
// Errors   as above
void rcmha_attention_backward(const Qkv& in, const RcmhaKernels& kernels, const RelativeTables& tables,
                              const RcmhaOptions& options, const AttnOutGrad& grad_out, const RcmhaGrad& grad_in,
                              Context& context);

}  // namespace attend
