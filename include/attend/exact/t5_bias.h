#pragma once
// Softmax attention with a learned bias for each bucket of distances: one distance a bucket up close, more and more
// further away.
//
//   w[i,.] = softmax over visible j of  scale * dot(q[i], k[j]) + table[bucket(j - i), h]
//   causal:  bucket(r) = fine(max(-r, 0)) of all N buckets
//   else:    bucket(r) = fine(|r|) of N / 2 buckets, the upper half of the table for r > 0
//   fine(d) of n buckets, e = n / 2:   d < e: d     d >= max_distance: n - 1
//                                      else: e + floor(ln(d / e) / ln(max_distance / e) * (n - e)), at most n - 1
//
// Source   Raffel et al. 2020, arXiv:1910.10683 (T5), section 2.1; the buckets as in its authors' code
//          (relative_position_bucket). Differs: a max_distance of e or less is defined (the last bucket begins there).
// Shapes   those of softmax attention (attend/exact/softmax.h); table [N, Hq] f32, N >= 2, even if not causal
// Cost     that of softmax attention and one table look-up a score
// Empty    a query that sees no key gets out = 0 and lse = -inf
// Errors   those of softmax_attention; Error(kArgument) for a table of other sizes or a max_distance out of 1..2^20
// Numerics those of softmax attention. Same bits: any.
#include "attend/exact/softmax.h"
#include "attend/exact/t5_bias_options.h"

namespace attend {

void t5_bias_attention(const Qkv& in, const View& table, const T5BiasOptions& options, const AttnOut& out,
                       Context& context);

struct T5BiasGrad {
  AttnGrad attention = {};
  View table = {};  // [N, Hq] f32
};

// As softmax_attention_backward (attend/exact/softmax.h), and the gradient of the table: those of the scores, summed by
// bucket. Cost: that of softmax_attention_backward, once more for the table; memory O(Hq * 96 * Tk) floats, at most 64
// MiB.
void t5_bias_attention_backward(const Qkv& in, const View& table, const T5BiasOptions& options, const AttnOut& forward,
                                const AttnOutGrad& grad_out, const T5BiasGrad& grad_in, Context& context);

}  // namespace attend
