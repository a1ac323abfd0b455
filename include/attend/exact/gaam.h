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

}  // namespace attend
