#pragma once
// sigmoid: each key is weighted by itself; nothing is normalised.
//
//   o[i] = sum over visible j of sigmoid(scale * dot(q[i], k[j]) + bias - ln n) v[j]     n: keys that query i sees
//
// Source   Ramapuram et al. 2024, arXiv:2409.04431, equation 3 and section 3 (b = -ln n). Differs: n is the number of
// keys
//          that the query sees, not the length of the text, so that a text cut into chunks gives one result.
// Shapes   q [B,Hq,Tq,D] f32   k [B,Hkv,Tk,D]   v [B,Hkv,Tk,Dv] f32, f16 or bf16   ->   out [B,Hq,Tq,Dv]
// Cost     that of softmax attention
// Empty    a query that sees no key gets 0
// Errors   those of softmax_attention
// Numerics f32 accumulation; |out - reference| <= bound::pointwise(...). Same bits: any.
#include "attend/exact/sigmoid_options.h"
#include "attend/exact/softmax.h"

namespace attend {

// `sink_logits` and `documents` of `in` must be absent.
void sigmoid_attention(const Qkv& in, const SigmoidOptions& options, const View& out, Context& context);

}  // namespace attend
