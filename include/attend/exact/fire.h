#pragma once
// Softmax attention with a learned function of interpolated distances (FIRE): a small network maps the distance, as a
// share of the query's position, to a bias for each head.
//
//   w[i,.] = softmax over visible j of  scale * dot(q[i], k[j]) + f[h](x)
//   x = phi(|i - j|) / phi(max(L, i))       phi(d) = ln(1 + c d)
//   f[h](x) = sum_u weight[h,u] max(0, inner_weight[u] x + inner_bias[u]) + outer_bias[h]
//
// i and j stand for positions; c is the rate, L the threshold.
//
// Source   Li et al. 2023, arXiv:2310.04418, section 3, equations 2 to 4 and appendix (the network has one hidden layer
//          of 32 units and ReLU). Differs: no epsilon in the denominator (L > 0 keeps it from 0); c and L, which are
//          learned, come as options.
// Shapes   those of softmax attention (attend/exact/softmax.h); inner_weight, inner_bias [U], weight [Hq, U],
//          outer_bias [Hq], all f32; 1 <= U <= 1024
// Cost     that of softmax attention and 3 U + 15 operations a score
// Empty    a query that sees no key gets out = 0 and lse = -inf
// Errors   those of softmax_attention; Error(kArgument) for arrays of other sizes and for a rate that is not in
//          0.001..1e9 or a threshold that is not in 1..1e9
// Numerics f32; phi(d) has an error of (2 + 5 phi(d)) epsilon. Same bits: any.
#include "attend/exact/fire_options.h"
#include "attend/exact/softmax.h"

namespace attend {

struct FireNetwork {
  View inner_weight, inner_bias, weight, outer_bias = {};
};

void fire_attention(const Qkv& in, const FireNetwork& network, const FireOptions& options, const AttnOut& out,
                    Context& context);

struct FireGrad {
  AttnGrad attention = {};
  View inner_weight = {}, inner_bias = {}, weight = {}, outer_bias = {};  // in the shapes of the network's
};

// As softmax_attention_backward (attend/exact/softmax.h), and the gradients of the network: those of scores go back
// through f[h], relu'(0) = 0. Cost: that of softmax_attention_backward, once more with 8 U operations a pair; memory
// O(Hq * 96 * Tk) floats, at most 64 MiB.
void fire_attention_backward(const Qkv& in, const FireNetwork& network, const FireOptions& options,
                             const AttnOut& forward, const AttnOutGrad& grad_out, const FireGrad& grad_in,
                             Context& context);

}  // namespace attend
