#pragma once
// alibi: softmax attention whose scores fall linearly with distance, more steeply in some heads than in others.
//
//   o[i] = sum_j w[i,j] v[j]      w[i,.] = softmax over visible j of  scale * dot(q[i], k[j]) - m[h] |i - j|
//   m[h] = 2^(-8 (h + 1) / Hq)
//
// Source   Press et al. 2021, arXiv:2108.12409, section 3. Differs: |i - j| instead of i - j, so that it is defined
//          without causal too.
// Shapes   q [B,Hq,Tq,D]  k [B,Hkv,Tk,D]  v [B,Hkv,Tk,Dv]  ->  out [B,Hq,Tq,Dv]  lse [B,Hq,Tq]
// Cost     that of softmax attention and two operations a score
// Errors   those of softmax_attention
#include <memory>

#include "attend/exact/softmax.h"
#include "attend/tensor/registry.h"

namespace attend {

struct AlibiOptions {
  bool causal = false;
};

void alibi_attention(const Qkv& in, const AlibiOptions& options, const AttnOut& out, Context& context);

std::unique_ptr<Operator> make_alibi_reference(const AlibiOptions& options);

void register_example(Registry& registry);

}  // namespace attend
