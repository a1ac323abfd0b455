#pragma once
// cat-geometry: Euclidean, hyperbolic and spherical attention side by side, mixed for each token by a router.
//
//   o[i] = sum over g of routing[i,g] o_g[i]      o_g[i] = sum_j w_g[i,j] v[j]
//   w_g[i,.] = softmax over visible j of
//     Euclidean    scale * dot(q[i], k[j])
//     hyperbolic   -beta d_H(q[i], k[j])
//     spherical    -beta d_S(q[i], k[j])          (squared: -beta/2 d^2)
//   d_H(x, y) = arcosh(sqrt(1 + c |x|^2) sqrt(1 + c |y|^2) - c dot(x, y)) / sqrt c             c = hyperbolic
//   d_S(x, y) = arccos((1 + c dot(x, y)) / (sqrt(1 + c |x|^2) sqrt(1 + c |y|^2))) / sqrt c     c = spherical
//   directions: d_S(x, y) = arccos(dot(x, y) / (|x| |y|)) / sqrt c; a zero vector is orthogonal to all
//
// Vectors are the space coordinates of points on the hyperboloid of curvature -c, and the tangent coordinates of points
// on the sphere of radius 1 / sqrt c seen from its centre (central projection): both distances tend to |x - y| as c
// tends to 0, where they are exactly that. A branch whose routing weight is 0 takes no part in a row, and is not
// computed where no row takes it.
//
// Source   Lin, Ojha, Bai 2025, arXiv:2510.01634: three branches and their mixture for each token. Its equations were
//          not at hand: the scores are the usual ones of these geometries. Gulcehre et al. 2018, arXiv:1805.09786,
//          section 3.2 (-beta times the hyperbolic distance of queries and keys on the hyperboloid; its constant -c
//          cancels in a softmax); Chen et al. 2021, arXiv:2105.14686, section 3.2 (squared distances of the Lorentz
//          model). Differs: values are averaged as vectors (in the tangent space at the origin) in every branch, so that
//          branches can be mixed; an Einstein midpoint is not taken. The router that makes the weights is not part of
//          this.
// Shapes   q [B,Hq,Tq,D] f32   k [B,Hkv,Tk,D]   v [B,Hkv,Tk,Dv] f32, f16 or bf16   routing [B,Hq,Tq,3] f32, each of the
//          first three axes also 1: Euclidean, hyperbolic, spherical; absent: a third each   ->   out [B,Hq,Tq,Dv]
//          1 <= D <= 510: curved branches append two elements
// Cost     three times that of softmax attention, less for branches that no row takes; copies of q, k and one output
// Empty    a query that sees no key gets 0
// Errors   those of softmax_attention; Error(kArgument) for key views, options out of range, directions on a flat
//          sphere. Nothing is written before it is thrown.
// Numerics f32 accumulation. A distance d has the error of its dot product divided by d, at most that error's root; a
//          squared distance that of its dot product. Same bits: any.
#include "attend/exact/cat_geometry_options.h"
#include "attend/exact/softmax.h"

namespace attend {

void cat_geometry_attention(const Qkv& in, const View& routing, const CatGeometryOptions& options, const View& out,
                            Context& context);

// Gradients, each written whole; null where not wanted. Axes that routing repeats are summed over.
struct CatGeometryGrad {
  View q, k, v, routing;
};

// Writes `grad_in` from the gradient of out, f32 [B,Hq,Tq,Dv]:
//
//   drouting[i,g] = dot(dout[i], o_g[i])
//   dq, dk, dv    = sums over g of those of the branch for routing[i,g] dout[i]; of a distance with
//     d d_H / d u   = 1 / sqrt(u (u + 2)) / sqrt c      u = c s, 1 + u the argument of arcosh
//     d d_S / d z   = 1 / sqrt(z (1 - z)) / sqrt c      1 - 2 z the argument of arccos
//
// A distance has no derivative where it is 0 nor, on the sphere, where it is largest: it counts as 0 there, as does the
// direction of a zero vector.
//
// Source   the derivative of the definition
// Cost     of each branch with a weight, that of softmax_attention and its backward pass; memory as much again as q, k,
//          v and twice the output
// Errors   as above, and for a gradient that is not of its argument's shape
// Numerics |grad - reference| <= cat-geometry's bound, which grows with the inverse of a distance unless `squared`. Same
//          bits: any.
void cat_geometry_attention_backward(const Qkv& in, const View& routing, const CatGeometryOptions& options,
                                     const View& grad_out, const CatGeometryGrad& grad_in, Context& context);

}  // namespace attend
