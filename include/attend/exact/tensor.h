#pragma once
// tensor: attention to pairs of tokens. A query scores two keys at a time and reads the product of their values.
//
//   o[i] = sum_{j,l} w[i,j,l] (v[j] * v2[l])     w[i,.,.] = softmax over visible j, l of s[i,j,l]
//   s[i,j,l] = scale * sum_c q[i,c] k[j,c] k2[l,c]     (* and products over c element by element)
//
//   With order > 0, exp(s) becomes P(s) = sum_{m <= 2 order} s^m / m!. P is positive and a sum of products of monomials
//   of q, k and k2: sums over j and over l separate, and the cost is linear in Tk. For |s| <= S each weight is within a
//   factor 1 +- 2 e^(2 S) S^(2 order + 1) / (2 order + 1)! of the exact one.
//
// Source   Alman and Song 2023, arXiv:2310.04064, definition 1.2 (exact) and section 4 (polynomial method for bounded
//          entries). Differs: the paper divides by D, which is scale = 1/D; the Taylor polynomial stands for its
//          approximation of least degree.
// Shapes   q [B,Hq,Tq,D] f32   k, k2 [B,Hkv,Tk,D]   v, v2 [B,Hkv,Tk,Dv] f32, f16 or bf16   ->   out [B,Hq,Tq,Dv]
// Cost     exact: 2 (D + Dv) flops for each query and visible pair of keys, by softmax attention of the queries
//          q[i] * k[j]; memory O(B Hq Tk (D + Dv)). order > 0: 6 F Dv flops a token, F = C(D + 2 order, 2 order);
//          memory O(threads * F Dv). Never Tk * Tk.
// Empty    a query that sees no key gets 0
// Errors   Error(kArgument), also for F * Dv above 2^26; nothing is written before it is thrown. Error(kCancelled) and
//          Error(kMemory) may leave outputs partly written.
// Numerics exact: that of softmax attention; order > 0: f64. Same bits: any.
#include "attend/exact/softmax.h"
#include "attend/exact/tensor_options.h"

namespace attend {

struct TensorIn {
  View q, k, k2, v, v2;
};

// Monomials of degree 2 * order at most in d variables, or -1 if there are over 2^26.
int64_t tensor_features(int64_t d, int64_t order);

void tensor_attention(const TensorIn& in, const TensorOptions& options, const View& out, Context& context);

// Gradients, each written whole; null where not wanted.
struct TensorGrad {
  View q, k, k2, v, v2;  // as their arguments, f32
};

// Writes `grad_in` from the gradient of out, [B,Hq,Tq,Dv] f32; the weights are computed again. With g[j,l] =
// dO[i] . (v[j] * v2[l]):
//
//   ds[i,j,l] = w[i,j,l] (g[j,l] - sum of w g)     (P'(s) / sum of P in place of w with order > 0)
//   dq[i] = scale sum_{j,l} ds k[j] * k2[l], and likewise k and k2;   dv[j] = sum_{i,l} w dO[i] * v2[l], likewise v2
//
// Source   the derivative of the definition
// Cost     exact: that of softmax attention's both passes over all pairs, a query at a time; order > 0: 20 F Dv flops a
//          token. Memory twice that of tensor_attention. Never Tk * Tk.
// Errors   as above, and for a gradient that is not of its argument's shape
void tensor_attention_backward(const TensorIn& in, const TensorOptions& options, const View& grad_out,
                               const TensorGrad& grad_in, Context& context);

}  // namespace attend
