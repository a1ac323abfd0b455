#pragma once
// harmonic: rotary positions combined with a bias that grows with distance, as in ALiBi, but along the harmonic series.
//
//   w[i,.] = softmax over visible j of  s / (1 + m[h] |i - j|)          s = scale * dot(R(i) q[i], R(j) k[j])
//   added:                              s - m[h] H(|i - j|)             H(d) = 1 + 1/2 + .. + 1/d
//
// R(p) turns pairs of a head by their angles at position p (attend/exact/rope.h). With slopes m of 1 the factors are
// the terms 1, 1/2, 1/3, .. of the harmonic series; with slopes of 0 both are rotary attention.
//
// Source   Li 2024, arXiv:2410.18441: "a factored combination of RoPE and ALiBi with a harmonic series" (abstract). Its
//          equations were not at hand. A factor of the score is how the abstract reads; `added` is the other reading,
//          ALiBi's sum with the distance replaced by the sum of the series.
// Shapes   those of softmax attention (attend/exact/softmax.h); slopes [Hq] f32, absent: 1
// Cost     that of rotary attention and, a score, 4 (factor) or 40 operations (added)
// Empty    a query that sees no key gets out = 0 and lse = -inf
// Errors   those of rope_attention; Error(kArgument) for a slope that is not in 0..1e6
// Numerics those of rope_attention; a factor has a relative error of 4 epsilon, H(d) one of epsilon (7 ln(d + 5) + 24).
//          Same bits: any, with the scalings of frequencies for which rope_attention has it.
#include "attend/exact/harmonic_options.h"
#include "attend/exact/rope.h"

namespace attend {

// `angles` as in rope_attention().
void harmonic_attention(const Qkv& in, const View& slopes, const HarmonicOptions& options, const AttnOut& out,
                        Context& context, const RopeAngles* angles = nullptr);

// As rope_attention_backward. Slopes have no gradient.
void harmonic_attention_backward(const Qkv& in, const View& slopes, const HarmonicOptions& options,
                                 const AttnOut& forward, const AttnOutGrad& grad_out, const AttnGrad& grad_in,
                                 Context& context, const RopeAngles* angles = nullptr);

}  // namespace attend
