#pragma once
// Attention over sentinel tokens: a span of tokens is compressed into the sentinels that stand at its end; who comes
// after these sees them and no longer the span, whose keys may then be dropped.
//
//   w[i,.] = softmax over visible j of scale * dot(q[i], k[j])
//   j visible to i  <=>  j <= i  and not (spans[j] = s > 0 and i > last(s)),  last(s) the last position p with
//                        spans[p] = -s; a span without sentinels stays visible
//
// `spans` holds at each position of the text s > 0 for a token of span s, -s for a sentinel of it, 0 for neither.
//
// Source   Ren et al. 2023, arXiv:2310.08152, section 3.1 (sentinels <CL> and <CR>, the modified causal mask). Differs:
//          any number of sentinels at any places, of which the paper has two.
// Shapes   those of softmax attention (attend/exact/softmax.h); spans [B,T] i32, T covers all positions
// Cost     that of softmax attention over visible blocks of 64 x 64, and O(Tq Tk / 8) bytes of mask at most
// Empty    a query that sees no key gets out = 0 and lse = -inf
// Errors   those of softmax_attention; Error(kArgument) for spans of another shape or type
// Numerics those of softmax attention. Same bits: any.
#include "attend/exact/sentinel_options.h"
#include "attend/exact/softmax.h"

namespace attend {

void sentinel_attention(const Qkv& in, const View& spans, const SentinelOptions& options, const AttnOut& out,
                        Context& context);

// Writes `grad_in` from the gradients of out and lse, of which one may be absent; `forward` holds both outputs: softmax
// attention's gradients over what is visible.
//
// Cost     that of softmax_attention_backward over visible blocks of 64 x 64
// Errors   as softmax_attention_backward
void sentinel_attention_backward(const Qkv& in, const View& spans, const SentinelOptions& options,
                                 const AttnOut& forward, const AttnOutGrad& grad_out, const AttnGrad& grad_in,
                                 Context& context);

}  // namespace attend
