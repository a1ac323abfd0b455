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

}  // namespace attend
