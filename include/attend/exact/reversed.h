#pragma once
// reversed: attention normalised over queries. Each key sends its value away, split among the queries; softmax
// attention gathers instead.
//
//   o[i] = sum_j w[i,j] select[h,j] message[j] v[j]     w[.,j] = softmax over i of scale * dot(q[i], k[j])
//
// Source   Ding et al. 2023, arXiv:2304.03282, section 3.2 (reversed attention, head selector, message controller), for
//          which keys are the children and queries the parents of the dependency tree. `select` is the head selector's
//          softmax over heads, `message` the controllers' product; the layers that make them are not part of this.
// Shapes   q [B,Hq,Tq,D] f32   k [B,Hkv,Tk,D]   v [B,Hkv,Tk,Dv] f32, f16 or bf16   select [B,Hq,Tk]  message [B,Tk]
//          f32, both optional (1) and at least 0   ->   out [B,Hq,Tq,Dv]
// Cost     one pass of softmax attention and one without values; memory O(B Hq (Tq + Tk)), never Tq * Tk
// Empty    without keys out = 0
// Errors   Error(kArgument), also for a negative element of select or message; nothing is written before it is thrown.
//          Error(kCancelled) and Error(kMemory) may leave outputs partly written.
// Numerics |out - reference| <= bound::reversed(...). Same bits: for whole texts (a key sees all queries), whatever the
//          batch and threads.
#include "attend/exact/reversed_options.h"
#include "attend/exact/softmax.h"

namespace attend {

// Only q, k and v of `in` may be given.
void reversed_attention(const Qkv& in, const View& select, const View& message, const ReversedOptions& options,
                        const View& out, Context& context);

// Gradients with respect to the inputs, f32, in the shapes of the inputs; each may be absent.
struct ReversedGrad {
  View q = {}, k = {}, v = {}, select = {}, message = {};
};

// Writes `grad_in` from the gradient of out, [B,Hq,Tq,Dv] f32. It is the backward pass of softmax attention in which
// keys ask, queries are the keys and d_out the values:
//
//   r[j] = sum_i w[i,j] d_out[i]      a = select[h,j] message[j]
//   ds[i,j] = w[i,j] a (dot(d_out[i], v[j]) - dot(r[j], v[j]))
//   dq[i] = scale sum_j ds k[j]       dk[j] = scale sum_i ds q[i]       dv[j] = sum over heads of a r[j]
//   d select[h,j] = message[j] dot(r[j], v[j])    d message[j] = sum over heads of select[h,j] dot(r[j], v[j])
//
// Source   the derivative of the definition
// Cost     that of softmax attention's forward and backward pass; memory O(B Hkv Tk (2 D + 3 Dv)), never Tq * Tk
// Errors   as above
void reversed_attention_backward(const Qkv& in, const View& select, const View& message, const ReversedOptions& options,
                                 const View& grad_out, const ReversedGrad& grad_in, Context& context);

}  // namespace attend
