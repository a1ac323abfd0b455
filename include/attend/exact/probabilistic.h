#pragma once
// probabilistic: attention to tokens that may not exist. Later tokens weigh as much less as they are less likely to.
//
//   o[i] = sum_j w[i,j] v[j]
//   w[i,.] = softmax over j of  scale * dot(q[i], k[j]) + (j > i ? ln exist[j] - ln exist[i] : 0)
//
//   exist in [0, 1]; as a key, a token with exist = 0 is not seen, as a query it gets 0
//
// Source   Rozental 2026, "Zonkey: A Hierarchical Diffusion Language Model with Differentiable Tokenization and
//          Probabilistic Attention", and the author's code (ARozental/Zonkey, models/transformer.py:
//          ProbabilisticAttention), which clamps exist at 1e-20 in the logarithm, as this does.
// Shapes   q [B,Hq,T,D] f32   k [B,Hkv,T,D]   v [B,Hkv,T,Dv] f32, f16 or bf16   exist [B,T] f32   ->   out [B,Hq,T,Dv]
// Cost     that of softmax attention and two operations a score; memory O(B T) beside its own
// Empty    where no token exists out = 0
// Errors   Error(kArgument), also for an element of exist outside [0, 1]; nothing is written before it is thrown.
//          Error(kCancelled) and Error(kMemory) may leave outputs partly written.
// Numerics |out - reference| <= bound::softmax(...) with the logarithms as bias. Same bits: any.
#include "attend/exact/probabilistic_options.h"
#include "attend/exact/softmax.h"

namespace attend {

// Only q, k and v of `in` may be given.
void probabilistic_attention(const Qkv& in, const View& exist, const ProbabilisticOptions& options, const View& out,
                             Context& context);

// Gradients, each written whole; null where not wanted.
struct ProbabilisticGrad {
  View q, k, v, exist;  // as their arguments, f32
};

// Writes `grad_in` from the gradient of out, [B,Hq,T,Dv] f32; the weights are computed again. With dS the gradients of
// the scores,
//
//   dexist[t] = (sum over heads and i < t of dS[i,t] - sum over heads and j > t of dS[t,j]) / exist[t],  0 below 1e-20
//
// Source   the derivative of the definition
// Cost     the products of softmax attention's backward pass. Memory O(B Hq T) and, a thread, O(T (D + Dv)).
// Errors   as above, and for a gradient that is not of its argument's shape
void probabilistic_attention_backward(const Qkv& in, const View& exist, const ProbabilisticOptions& options,
                                      const View& grad_out, const ProbabilisticGrad& grad_in, Context& context);

}  // namespace attend
