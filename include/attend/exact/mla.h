#pragma once
// mla: multi-head latent attention. The cache holds one latent c[j] and one rotary key r[j] a token, for all heads.
//
//   expanded   k[h,j] = [W_uk[h] c[j], r[j]]     v[h,j] = W_uv[h] c[j]     q[h,i] = [n[h,i], t[h,i]]
//              t of `rope` elements
//              o[h,i] = sum_j w[h,i,j] v[h,j]    w[h,i,.] = softmax over visible j of scale * dot(q[h,i], k[h,j])
//   absorbed   dot(q[h,i], k[h,j]) = dot([W_uk[h]' n[h,i], t[h,i]], [c[j], r[j]]):  attention of all heads to one kv
//              head whose keys are the cache and whose values are the latents, then W_uv[h]. The cache is read once a
//              step.
//
//   This computes the absorbed form; the reference is the expanded one.
//
// Source   DeepSeek-AI 2024, arXiv:2405.04434, section 2.1 (latents, decoupled rotary keys, absorption); Ji et al.
//          2025, arXiv:2502.14837 (any model brought into this form). t and r come rotated.
// Shapes   q [B,Hq,Tq,D] f32   cache [B,1,Tk,R+rope] f32, f16 or bf16   w_uk [Hq,D-rope,R]  w_uv [Hq,Dv,R] f32
//          kv_lens, q_positions as in softmax attention   ->   out [B,Hq,Tq,Dv]  lse [B,Hq,Tq]
//          R + rope and Dv in 1..512
// Cost     2 (2 R + rope) flops for each head and visible pair, 2 R (D - rope + Dv) a query; memory
//          O(B Hq Tq (2 R + rope))
// Empty    a query that sees no key gets out = 0 and lse = -inf
// Errors   Error(kArgument); nothing is written before it is thrown. Error(kCancelled) and Error(kMemory) may leave
//          outputs partly written.
// Numerics f32 accumulation; errors of a score grow with |W_uk|. Same bits: any.
#include "attend/exact/mla_options.h"
#include "attend/exact/softmax.h"

namespace attend {

struct MlaIn {
  View q, cache, w_uk, w_uv;
  View kv_lens = {}, q_positions = {};
};

void mla_attention(const MlaIn& in, const MlaOptions& options, const AttnOut& out, Context& context);

// Gradients with respect to the inputs, f32, in the shapes of the inputs; each may be absent.
struct MlaGrad {
  View q = {}, cache = {}, w_uk = {}, w_uv = {};
};

// Writes `grad_in` from the gradients of out and lse, of which one may be absent. With a[h,i] the absorbed query, u[h,i]
// the weighted latents and da, dk and dv what softmax attention's backward pass makes of du = W_uv[h]' d_out:
//
//   dq[h,i] = [W_uk[h] da[:R], da[R:]]   d cache[j] = dk[j] + [dv[j], 0]
//   d W_uk[h] = sum_i n[h,i] da[:R]'     d W_uv[h] = sum_i d_out[h,i] u[h,i]'
//
// Source   the derivative of the definition
// Cost     that of softmax attention's forward and backward pass to a head of R + rope, and 4 R (D - rope + Dv) a query;
//          memory O(B (Hq Tq (R + rope) + Tk R)) beside what that takes. Sums over batch entries and queries ascend.
// Errors   as above
void mla_attention_backward(const MlaIn& in, const MlaOptions& options, const AttnOutGrad& grad_out,
                            const MlaGrad& grad_in, Context& context);

}  // namespace attend
