#pragma once
// gaam: Gaussian adaptive attention. Features are weighted by Gaussians around their own mean; no queries, no keys.
//
//   over the features c of one token (or, with `tokens`, over the tokens of one feature), n of them:
//   mean = sum x / n     var = sum (x - mean)^2 / (n - 1) + epsilon   (epsilon alone for n = 1)
//   g[c] = product over m of  exp(-y^2 / (2 width[m]^2)) / sqrt(2 pi width[m]^2)
//   y = (x[c] - mean - offset[m]) / sqrt(var)          out[c] = x[c] g[c] / max(sum of g, epsilon)
//
// Source   Ioannides et al. 2024, arXiv:2401.11143, section 3 and the authors' code (multi_head_gaussian_adaptive_
//          attention.py), whose offsets and widths are learned, each head its own. Differs: no padding value; n = 1.
// Shapes   x [B,Hq,Tq,D] f32   offset, width [Hq,G] f32   ->   out [B,Hq,Tq,D]
// Cost     about 6 G + 20 operations an element; memory O(threads * n)
// Empty    a sum of g below epsilon divides by epsilon; without tokens there is no output
// Errors   Error(kArgument), also for a width of 0; nothing is written before it is thrown. Error(kCancelled) and
//          Error(kMemory) may leave outputs partly written.
// Numerics exponents in f64, weights in f32: |out - reference| <= bound::gaam(...). Same bits: any.
#include "attend/exact/gaam_options.h"
#include "attend/tensor/context.h"
#include "attend/tensor/view.h"

namespace attend {

void gaam_attention(const View& x, const View& offset, const View& width, const GaamOptions& options, const View& out,
                    Context& context);

// Gradients, each written whole; null where not wanted.
struct GaamGrad {
  View x, offset, width;  // as their arguments
};

// Writes `grad_in` from the gradient of out, f32 of x's shape. With e[c] the sum over m of y^2 / (2 width[m]^2), w[c] =
// g[c] / max(sum of g, epsilon) and E[c] = -w[c] (x[c] dout[c] - sum of w x dout):
//
//   dx[c]        = w[c] dout[c] + E[c] de[c]/dx[c] + what E gives the mean and the variance
//   doffset[m]   = sum over all rows of the head of E[c] de[c]/doffset[m], dwidth[m] likewise
//
//   where epsilon divides, the sum of w x dout is left out of E, and dwidth gets that of the Gaussians' heights.
//
// Source   the derivative of the definition
// Cost     about 10 G + 30 operations an element; memory O(threads * n + B Hq G)
// Errors   as above, and for a gradient that is not of its argument's shape
void gaam_attention_backward(const View& x, const View& offset, const View& width, const GaamOptions& options,
                             const View& grad_out, const GaamGrad& grad_in, Context& context);

}  // namespace attend
