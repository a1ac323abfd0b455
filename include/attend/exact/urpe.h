#pragma once
// Universal relative attention (URPE): weights are multiplied by a learned number for their distance after the softmax,
// so that rows need not sum to 1 and position shows where all tokens are equal.
//
//   o[i] = sum_j w[i,j] multiplier[h,r] v[j]     r = clip(j - i, -K, K)
//   w[i,.] = softmax over visible j of  scale * dot(q[i], k[j]) + bias[h,r]
//
// Column r + K of a table of P = 2 K + 1 columns stands for distance r. A multiplier of 1 everywhere gives relative
// attention with a bias.
//
// Source   Luo et al. 2022, arXiv:2205.13401, section 4, equation 6: a Toeplitz matrix times the softmax matrix,
//          element by element. Differs: distances beyond K share its multiplier (K >= Tk gives the matrix of the
//          paper).
// Shapes   those of softmax attention (attend/exact/softmax.h); multiplier and bias [1 or Hq, P] f32, bias optional
// Cost     that of softmax attention and a table look-up a score (two with a bias): one pass over the keys
// Empty    a query that sees no key gets out = 0 and lse = -inf
// Errors   those of softmax_attention; Error(kArgument) for tables of other sizes
// Numerics those of softmax attention; lse is the denominator's, without multipliers. Same bits: any.
#include "attend/exact/softmax.h"
#include "attend/exact/urpe_options.h"

namespace attend {

void urpe_attention(const Qkv& in, const View& multiplier, const View& bias, const UrpeOptions& options,
                    const AttnOut& out, Context& context);

// Gradients with respect to the inputs, f32, in the shapes of the inputs; each may be absent. Axes that an input
// repeats are summed over.
struct UrpeGrad {
  View q = {}, k = {}, v = {}, multiplier = {}, bias = {};
};

// Writes `grad_in` from the gradients of out and lse, of which one may be absent.
//
//   g[i,j] = dot(d_out[i], v[j])      ds[i,j] = w (m g - sum_j w m g + d_lse[i])     m = multiplier[h,r]
//   dq[i] = scale sum_j ds k[j]       dk[j] = scale sum_i ds q[i]                    dv[j] = sum_i w m d_out[i]
//   d multiplier[h,r], d bias[h,r]: the sums of w g and of ds over the pairs at distance r
//
// Source   the derivative of the definition
// Cost     2 (3 D + 2 Dv) flops for each pair; memory O(Hq P), and a thread O((Tk + 64) (D + Dv) + 2^20) floats.
//          Threads take kv heads; sums are in ascending order of batch entry, head and query.
// Errors   as above
void urpe_attention_backward(const Qkv& in, const View& multiplier, const View& bias, const UrpeOptions& options,
                             const AttnOutGrad& grad_out, const UrpeGrad& grad_in, Context& context);

}  // namespace attend
