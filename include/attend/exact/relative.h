#pragma once
// Relative attention: a learned vector for each distance joins keys (and values). Memory stays O(T D): products of a
// block of queries with the table are read along their diagonals in place ("skewing"), never as a Tq x Tk matrix.
//
//   w[i,.] = softmax over visible j of  scale * ( dot(q[i] + content[h], k[j]) + dot(q[i] + position[h], keys[h,r])
//                                                 + bias[h,r] )          r = clip(j - i, -K, K)
//   o[i]   = sum_j w[i,j] (v[j] + values[h,r])
//
// Row r + K of a table of P = 2 K + 1 rows stands for distance r (P = K + 1 and r in -K..0 with `past`). The papers are
// cases of it:
//   Shaw et al.        keys and values, one table for all heads (axis of 1)
//   Music Transformer  keys, `past`, causal, K >= Tk - 1: then nothing is clipped
//   Transformer-XL     keys[h,r] = W sinusoid(-r), content u, position v
//
// Source   Shaw et al. 2018, arXiv:1803.02155, equations 3 and 4; Huang et al. 2018, arXiv:1809.04281, equation 3 and
//          section 3.4.1 (relative attention and skewing); Dai et al. 2019, arXiv:1901.02860, section 3.3.
// Shapes   those of softmax attention (attend/exact/softmax.h), keys as arrays; keys [1 or Hq, P, D],
//          values [1 or Hq, P, Dv], content and position [Hq, D], bias [1 or Hq, P], all f32; all but keys are optional
// Cost     that of softmax attention plus 2 D flops a visible pair, as products of matrices; with values O(K (D + Dv))
//          a query and another pass over the keys for the weight beyond the table. Memory O(P D) and, a thread,
//          48 Tk
// Empty    a query that sees no key gets out = 0 and lse = -inf
// Errors   those of softmax_attention; Error(kArgument) for tables of other sizes and for `past` without causal
// Numerics f32; the score is the sum of two dot products of length D. With values, weights of single keys are
//          recomputed from lse, and those beyond the table on the right are what is left of 1. Same bits: any.
#include "attend/exact/relative_options.h"
#include "attend/exact/softmax.h"

namespace attend {

struct RelativeTables {
  View keys;
  View values = {}, content = {}, position = {}, bias = {};
};

void relative_attention(const Qkv& in, const RelativeTables& tables, const RelativeOptions& options, const AttnOut& out,
                        Context& context);

// Gradients with respect to the inputs, f32, in the shapes of the inputs; each may be absent. Axes that an input
// repeats are summed over.
struct RelativeGrad {
  View q = {}, k = {}, v = {}, relative_keys = {}, relative_values = {}, content_bias = {}, position_bias = {},
       distance_bias = {};
};

// Writes `grad_in` from the gradients of out and lse, of which one may be absent.
//
//   g[i,j] = dot(d_out[i], v[j] + values[h,r])     ds[i,j] = w (g[i,j] - sum_j w g + d_lse[i])
//   dq[i]  = scale sum_j ds (k[j] + keys[h,r])     dk[j] = scale sum_i ds (q[i] + content[h])     dv[j] = sum_i w d_out[i]
//   with S[i,r] and W[i,r] the sums of ds and w over the keys at distance r:
//   d keys[h,r] = scale sum_i S (q[i] + position[h])   d values[h,r] = sum_i W d_out[i]   d bias[h,r] = scale sum_i S
//   d content[h] = scale sum_ij ds k[j]                d position[h] = scale sum_ir S keys[h,r]
//
// Source   the derivative of the definition
// Cost     that of the forward pass, 2 (2 D + Dv) flops for each pair, and 4 D (8 D with values) for each query and
//          table row in reach. Memory O(Hq P (D + Dv)), and a thread O((Tk + 64) (D + Dv) + 2^20) floats. Threads take
//          kv heads; sums are in ascending order of batch entry, head and query.
// Errors   as above
void relative_attention_backward(const Qkv& in, const RelativeTables& tables, const RelativeOptions& options,
                                 const AttnOutGrad& grad_out, const RelativeGrad& grad_in, Context& context);

}  // namespace attend
