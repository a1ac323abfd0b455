#pragma once
// differential: the difference of two softmax attentions, one for the signal and one for the noise. Each noise head
// serves a group of signal heads.
//
//   o[h,i] = sum_j (a[h,i,j] - lambda n[h / ratio,i,j]) v[j]     ratio = Hq / Hn
//   a[h,i,.] = softmax over visible j of scale * dot(q[h,i], k[j])
//   n[g,i,.] = softmax over visible j of scale * dot(q_noise[g,i], k_noise[j])
//
// Source   Ye et al. 2024, arXiv:2410.05258, equation 1 (ratio 1); Lim et al. 2025, arXiv:2510.06949, section 2.2
//          (unbalanced groups; lambda for each token as in the authors' later models). Heads of the papers' one
//          projection are separate arrays here; the headwise normalisation after it is the layer's, and is not part of
//          this.
// Shapes   q [B,Hq,Tq,D]  q_noise [B,Hn,Tq,D] f32   k, k_noise [B,Hkv,Tk,D]  v [B,Hkv,Tk,Dv] f32, f16 or bf16
//          lambda (optional) [B,Hq,Tq] f32   ->   out [B,Hq,Tq,Dv];   Hn divides Hq, Hkv divides Hn
// Cost     that of softmax attention with Hq + Hn heads; memory O(B Hn Tq Dv) beside its own
// Empty    a query that sees no key gets 0
// Errors   Error(kArgument); nothing is written before it is thrown. Error(kCancelled) and Error(kMemory) may leave
//          outputs partly written.
// Numerics |out - reference| <= that of both attentions and two roundings. Same bits: any.
#include <span>

#include "attend/exact/differential_options.h"
#include "attend/exact/softmax.h"

namespace attend {

// Of `signal`, q, k, v, kv_lens, q_positions and documents are used; others must be absent.
struct DifferentialIn {
  Qkv signal;
  View q_noise, k_noise;
  View lambda = {};
};

void differential_attention(const DifferentialIn& in, const DifferentialOptions& options, const View& out,
                            Context& context);

// Gradients with respect to the inputs, f32, in the shapes of the inputs; each may be absent.
struct DifferentialGrad {
  View q = {}, k = {}, v = {}, q_noise = {}, k_noise = {}, lambda = {};
};

// Writes `grad_in` from the gradient of out, [B,Hq,Tq,Dv] f32. Both attentions are computed again. Source: the
// derivative of the definition; each attention as in softmax_attention_backward (attend/exact/softmax.h). Cost: that of
// both, forward and backward; memory O(B (Hq + Hn) Tq Dv + B Hkv Tk Dv). Errors as above.
void differential_attention_backward(const DifferentialIn& in, const DifferentialOptions& options, const View& grad_out,
                                     const DifferentialGrad& grad_in, Context& context);

// The learned lambda of a layer (equation 2): exp(q1 . k1) - exp(q2 . k2) + initial; the paper's initial value is
// 0.8 - 0.6 exp(-0.3 layer), counted from 0. Throws Error(kArgument) for vectors of different lengths.
double differential_lambda(std::span<const float> q1, std::span<const float> k1, std::span<const float> q2,
                           std::span<const float> k2, double initial);

}  // namespace attend
