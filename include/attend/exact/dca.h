#pragma once
// Dual chunk attention: rotary positions that stay below the trained context however long the text is. A model reads
// on without training, and exactly as before within a chunk and across the nearest c - s tokens of the chunk before.
//
//   w[i,.] = softmax over j <= i of  scale * dot(R(x) q[i], R(j mod s) k[j]),  R(p) the rotation of position p, and
//     same chunk, i / s = j / s         intra        x = i mod s
//     the chunk before, i / s = j / s + 1  successive  x = min(i mod s + s, c - 1)
//     an earlier chunk                  inter        x = c - 1
//
// Always causal. i and j stand for positions.
//
// Source   An et al. 2024, arXiv:2402.17463, sections 3.1 to 3.3, equations 2 to 7. Its authors' code lets x reach c
//          instead of c - 1, and the largest x be 2 s - 1 where that is less.
// Shapes   q [B,Hq,Tq,D] f32   k [B,Hkv,Tk,D]   v [B,Hkv,Tk,Dv] f32, f16 or bf16   ->   out [B,Hq,Tq,Dv]
//          lse [B,Hq,Tq]; keys as arrays are unrotated, at positions 0, 1, ..; those of key views were rotated by
//          dca_turn_keys() when they were stored
// Cost     that of softmax attention, three rotations of the queries and one of the keys. Memory O(Tk D)
// Empty    a query that sees no key gets out = 0 and lse = -inf
// Errors   Error(kArgument) naming argument, value and rule; nothing is written before it is thrown. Error(kCancelled)
//          and Error(kMemory) may leave outputs partly written.
// Numerics the three parts are partials of one softmax, merged in ascending order of keys. Same bits: any.
#include "attend/exact/dca_options.h"
#include "attend/exact/rope.h"

namespace attend {

// `angles`, if given, are those of options.rope for heads as wide as these.
void dca_attention(const Qkv& in, const DcaOptions& options, const AttnOut& out, Context& context,
                   const RopeAngles* angles = nullptr);

// Writes `grad_in` from the gradients of out and lse, of which one may be absent; `forward` holds both outputs. Keys are
// arrays. Each part of the keys has softmax attention's gradients, turned back by what its queries were turned by.
//
// Source   the derivative of the definition
// Cost     that of softmax_attention_backward and of a sum of O(Tk (D + Dv)) for each chunk of queries. Memory
//          O(Tk (D + Dv))
// Errors   as softmax_attention_backward
void dca_attention_backward(const Qkv& in, const DcaOptions& options, const AttnOut& forward,
                            const AttnOutGrad& grad_out, const AttnGrad& grad_in, Context& context,
                            const RopeAngles* angles = nullptr);

// The weights that queries give to each key, as add_weights (attend/exact/weight_statistics.h); `lse` as dca_attention
// gave it.
void dca_add_weights(const Qkv& in, const DcaOptions& options, const View& lse, const WeightPlaces& to,
                     Context& context, const RopeAngles* angles = nullptr);

// Rotates keys [B,H,T,D] f32 at `positions` in place, each by its position within its chunk.
void dca_turn_keys(const View& keys, std::span<const int32_t> positions, const DcaOptions& options,
                   const RopeAngles& angles, Context& context);

}  // namespace attend
