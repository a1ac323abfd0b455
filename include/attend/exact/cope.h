#pragma once
// Softmax attention over contextual positions (CoPE): distance counts only the tokens that a gate lets count.
//
//   g[i,j] = 1 / (1 + exp(-scale * dot(q[i], k[j])))        p[i,j] = min( sum of g[i,t] over j <= t <= i, P - 1 )
//   z(p)   = dot(q[i], e[p]) at integers, linear between them
//   w[i,.] = softmax over j <= i of  scale * (dot(q[i], k[j]) + z(p[i,j]))
//
// Always causal.
//
// Source   Golovneva et al. 2024, arXiv:2405.18719, section 4, equations 4 to 7; the scale on both terms as in the
//          authors' code (a listing in the paper adds z after scaling). Gates use the keys themselves.
// Shapes   q [B,Hq,Tq,D] f32   k [B,Hkv,Tk,D]   v [B,Hkv,Tk,Dv] f32, f16 or bf16   e [P,D] f32, 2 <= P <= 65536   ->
//          out [B,Hq,Tq,Dv]   lse [B,Hq,Tq]. The last query sits on the last key.
// Cost     two passes of products of queries with keys: the first one sums gates a split of 512 keys; about 40
//          operations a score. Memory O(256 (P + Tk / 512)) a head
// Empty    a query that sees no key gets out = 0 and lse = -inf
// Errors   Error(kArgument) naming argument, value and rule; nothing is written before it is thrown. Error(kCancelled)
//          and Error(kMemory) may leave outputs partly written.
// Numerics f32; a count of n gates has an error of about n times that of a gate. Same bits: any.
#include "attend/exact/cope_options.h"
#include "attend/exact/softmax.h"

namespace attend {

void cope_attention(const Qkv& in, const View& embeddings, const CopeOptions& options, const AttnOut& out,
                    Context& context);

// Gradients, each written whole; null where not wanted.
struct CopeGrad {
  View q, k, v, embeddings;  // as their arguments, f32
};

// Writes `grad_in` from the gradients of out and lse, of which one may be absent; the weights are computed again. With
// dS the gradients of the softmax's scores and p the counts,
//
//   dp[i,j] = scale dS[i,j] (q[i] . e[ceil p] - q[i] . e[floor p]) where p < P - 1, else 0
//   dg[i,t] = sum over j <= t of dp[i,j]      d dot(q[i], k[t]) = scale (dS[i,t] + g (1 - g) dg[i,t])
//
//   z bends where a count is an integer: there the slope is that of the piece below.
//
// Source   the derivative of the definition
// Cost     2 (3 D + 2 Dv) flops and about 80 operations for each visible pair, 6 P D for each query. Memory O(Hq P D)
//          and, a thread, O(Tk (D + Dv) + P).
// Errors   as above, and for a gradient that is not of its argument's shape
void cope_attention_backward(const Qkv& in, const View& embeddings, const CopeOptions& options,
                             const AttnOutGrad& grad_out, const CopeGrad& grad_in, Context& context);

}  // namespace attend
