#pragma once
// prflash: causal softmax attention in which a block of keys takes part with a probability that depends on its distance
// to the block of queries.
//
//   w[i,.] = softmax over j <= i of scale * dot(q[i], k[j]) where block J = floor(j / block) takes part for
//            I = floor(i / block)
//   J takes part for I  <=>  J = I  or  draw(seed, I, J) < 2^32 P(I - J)      P(n) = (1 + n)^-power
//
// draw() is a counter-based generator, uniform in [0, 2^32): whether a block takes part depends on seed, I and J alone,
// so that any number of threads, any cut of the text and the next layer repeat it; another seed is another round.
// All batch entries and heads share the blocks. Weights are not rescaled for what is left out.
//
//   draw(seed, I, J) = mix(row + 0x9e3779b9 J)     row = mix(mix(mix(low 32 bits of seed)) + I) + high 32 bits of seed
//   mix(x): x ^= x >> 16, x *= 0x7feb352d, x ^= x >> 15, x *= 0x846ca68b, x ^= x >> 16     (modulo 2^32)
//
// Source   Li 2024, arXiv:2410.18441: PrFlashAttention, "a probability distribution over block distances in the matrix
//          to decide which block is likely to participate in a given round of attention computation while maintaining
//          the lower triangle shape" (abstract). Its equations were not at hand: the default distribution is ours, any
//          other comes as an array. Generator: as Dropout (attend/exact/dropout.h). Differs: no tensor is reshaped; the
//          blocks that take part are a mask, and the others are not computed.
// Shapes   those of softmax attention (attend/exact/softmax.h); probability [N] f32, entry n of distance n and the last
//          of all beyond; absent: (1 + n)^-power. The block of the query itself takes part in any case.
// Cost     that of softmax attention over the blocks that take part, and O((Tk / 64)^2) to draw them; O(Tq Tk) where
//          `block` is no multiple of 64
// Empty    a query before position 0 gets out = 0 and lse = -inf
// Errors   those of softmax_attention; Error(kArgument) for options out of range and a probability outside 0..1
// Numerics those of softmax attention. Same bits: any.
#include <vector>

#include "attend/exact/prflash_options.h"
#include "attend/exact/softmax.h"

namespace attend {

void prflash_attention(const Qkv& in, const View& probability, const PrFlashOptions& options, const AttnOut& out,
                       Context& context);

// Writes `grad_in` from the gradients of out and lse, of which one may be absent; `forward` holds both outputs: softmax
// attention's gradients over the blocks that take part.
//
// Cost     that of softmax_attention_backward over these blocks, and of drawing them
// Errors   as softmax_attention_backward
void prflash_attention_backward(const Qkv& in, const View& probability, const PrFlashOptions& options,
                                const AttnOut& forward, const AttnOutGrad& grad_out, const AttnGrad& grad_in,
                                Context& context);

// Whether blocks J take part for I, for `blocks` of both: [I * blocks + J], as the attention above draws them.
std::vector<bool> prflash_blocks(int64_t blocks, const View& probability, const PrFlashOptions& options);

}  // namespace attend
