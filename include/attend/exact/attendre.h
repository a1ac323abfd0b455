#pragma once
// attendre: attention over a bounded memory of keys and values that a stream passes through, with queries that wait in
// a memory of their own until later keys have come.
//
//   Tokens come `chunk` at a time; after step c there are n = min((c + 1) chunk, T) of them. In each step
//     the keys that were there give way to the new ones, until at most max(memory, chunk) are left:
//       fifo the oldest, lra the one least recently attended to, lfa the one least frequently attended to
//     queries i < n - delay that still wait, in the last step all that do, attend to the keys S[i] that they retrieve:
//       those in memory (causal: with j <= i), with `top` the `top` of largest score
//     o[i] = sum over j in S[i] of w[i,j] v[j]     w[i,.] = softmax over j in S[i] of scale * dot(q[i], k[j])
//     i attended to j  <=>  w[i,j] > 1 / |S[i]|
//   lra goes by the last step in which a key came or was attended to by a query of a head that reads it, lfa by how
//   many such queries there were. Of equal ones the older leaves, of equal scores the older is retrieved.
//
//   With memory for all keys, a delay of the whole text gives softmax attention of all tokens with all, no delay and
//   causal its causal form; fifo with chunks of one token, no delay and causal that with a window of `memory` tokens.
//
// Source   Yang & Hua 2024, arXiv:2401.04881: memories of keys and values and of queries, evictions, and the Attendre
//          layer, whose evicted queries retrieve from the memory of keys and values. Differs: when a key counts as
//          attended to, which its abstract does not say; each kv head evicts by itself.
// Shapes   q [B,Hq,T,D] f32   k [B,Hkv,T,D]   v [B,Hkv,T,Dv] f32, f16 or bf16   ->   out [B,Hq,T,Dv]   lse [B,Hq,T]
// Cost     2 (D + Dv) flops for each query and key in memory, or that many and a selection with `top`; memory
//          O(threads * (memory + chunk) (D + Dv)). Threads take batch entries and kv heads.
// Empty    a query all of whose keys have left gets out = 0 and lse = -inf
// Errors   Error(kArgument); nothing is written before it is thrown. Error(kCancelled) and Error(kMemory) may leave
//          outputs partly written.
// Numerics f32 accumulation; |out - reference| <= attendre's bound. Which keys are retrieved and attended to
//          is what exact arithmetic says, up to the rounding of doubles: rows with a score within its error of a
//          decision are worked out again in double. Same bits: any.
#include "attend/exact/attendre_options.h"
#include "attend/exact/softmax.h"

namespace attend {

// Only q, k and v of `in` may be given.
void attendre_attention(const Qkv& in, const AttendreOptions& options, const AttnOut& out, Context& context);

// Writes `grad_in`, those of q, k and v, from the gradients of out and lse: softmax attention's, of each query over the
// keys that it retrieves. Which those are has no derivative.
//
// Source   the derivative of the definition
// Cost     the stream once more, with 2 (3 D + 2 Dv) flops for each query and key in memory; memory twice as much
// Errors   as above
void attendre_attention_backward(const Qkv& in, const AttendreOptions& options, const AttnOutGrad& grad_out,
                                 const AttnGrad& grad_in, Context& context);

}  // namespace attend
