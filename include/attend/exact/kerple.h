#pragma once
// Softmax attention whose scores fall with distance: a power of it (ALiBi is the first power) or its logarithm.
//
//   w[i,.] = softmax over visible j of  scale * dot(q[i], k[j]) - fall(|i - j|)
//   fall(d) = amount[h] d^rate[h]              (power)
//   fall(d) = amount[h] ln(1 + rate[h] d)      (log)
//
// Without `amount` it is ALiBi's slope m[h], without `rate` it is 1: with neither, the power kernel is ALiBi. Where Hq
// is a power of two m[h] = 2^(-8 (h + 1) / Hq); otherwise the largest such number n < Hq of heads gets the slopes of n,
// and head n + e gets 2^(-4 (2 e + 1) / n).
//
// Source   Chi et al. 2022, arXiv:2205.09921 (KERPLE), section 4, "power" and "logarithmic variant"; Press et al. 2021,
//          arXiv:2108.12409 (ALiBi), section 3, and its authors' code where Hq is no power of two. Differs: |i - j|
//          makes ALiBi defined without causal too. No position encoding at all (arXiv:2305.19466) is plain softmax
//          attention.
// Shapes   those of softmax attention (attend/exact/softmax.h); amount [Hq], rate [Hq] f32
// Cost     that of softmax attention and, a score, 3 operations (ALiBi), 20 (log) or 30 (power)
// Empty    a query that sees no key gets out = 0 and lse = -inf
// Errors   those of softmax_attention; Error(kArgument) for an amount that is negative or not finite, and for a rate
//          that is not in [0, 2] (power) or [0, 1e6] (log)
// Numerics those of softmax attention; fall() has a relative error of 12 epsilon. Same bits: any.
#include "attend/exact/kerple_options.h"
#include "attend/exact/softmax.h"

namespace attend {

struct KerpleParameters {
  View amount = {}, rate = {};  // [Hq] f32; absent: see above
};

void kerple_attention(const Qkv& in, const KerpleParameters& parameters, const KerpleOptions& options,
                      const AttnOut& out, Context& context);

struct KerpleGrad {
  AttnGrad attention = {};
  View amount = {}, rate = {};  // [Hq] f32, of parameters that are given
};

// As softmax_attention_backward (attend/exact/softmax.h), and the gradients of the parameters: -d fall / d parameter
// summed over all pairs with the gradients of their scores. Cost: that of softmax_attention_backward, once more for
// each parameter; memory O(Hq * 96 * Tk) floats, at most 64 MiB.
void kerple_attention_backward(const Qkv& in, const KerpleParameters& parameters, const KerpleOptions& options,
                               const AttnOut& forward, const AttnOutGrad& grad_out, const KerpleGrad& grad_in,
                               Context& context);

}  // namespace attend
