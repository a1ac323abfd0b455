#pragma once
// Bounds of mechanisms that are softmax attention of scores with more in them than a dot product.
#include <string_view>

#include "attend/tensor/bound.h"
#include "attend/tensor/operator.h"

namespace attend::exact {

// Largest Euclidean norm of a row along the last axis, and largest magnitude; what is not finite is left out, and a
// view without data gives 0.
double largest_row(const View& v);
double largest(const View& v);

// Of `out` or `lse` where scores have `added` magnitude (and its rounding) and `error` beside those of the dot product.
double scored(bound::SoftmaxNorms norms, double added, double error, std::string_view output);

// Rotating queries and keys moves each by 5 epsilon of its length: the score by 10 of the product of the lengths.
inline double rotary_error(const bound::SoftmaxNorms& norms) {
  return 10 * bound::kEpsilon * norms.scale * norms.query * norms.key;
}

// The norms of scores with `added` magnitude and `error` beside those of the dot product.
bound::SoftmaxNorms with_scores(bound::SoftmaxNorms norms, double added, double error);

// Of the gradient of a number that moves the score of a pair by at most `slope`, itself with a relative error of
// `error`: the gradients of a row's scores err by their weights, which add up to 1, times what softmax_slope_error
// says.
double parameter_gradient(const bound::SoftmaxNorms& norms, const Tensors& in, double slope, double error);

// What a backward pass by rows (exact/row_backward.h) errs by in the gradient of a score, divided by its weight: sums
// over all keys of a row in 16 lanes come to what softmax_slope_error says.
double row_slope_error(const bound::SoftmaxGradientNorms& n);

// Of a sum over `rows` rows of their scores' gradients times numbers up to `factor`, in chains of `chain` roundings.
double rows_gradient(const bound::SoftmaxGradientNorms& n, double rows, double factor, int64_t chain);

// Of a sum over `rows` rows of their weights times numbers up to `factor`.
double rows_weights(const bound::SoftmaxGradientNorms& n, double rows, double factor, int64_t chain);

// Of the gradient of an unrotated query or key, or of a value, where `norms` are those of rotated ones that grew by
// `magnitude`: elements mix in pairs, so each errs by twice what an element of the gradient of a rotated one does, and
// rotating moves both what is multiplied and the result by 5 epsilon of its length.
double rotary_gradient(const bound::SoftmaxNorms& norms, const Tensors& in, double magnitude, std::string_view output);

// The largest distance of a query to the nearest key that it sees, and to any key.
struct Reach {
  double nearest, farthest;
};
Reach reach_of(const Tensors& in, bool causal);

}  // namespace attend::exact
