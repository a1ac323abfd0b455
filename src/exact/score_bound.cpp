#include "exact/score_bound.h"

#include <algorithm>
#include <cmath>

#include "attend/exact/attention_operator.h"

namespace attend::exact {

double largest_row(const View& v) {
  double most = 0;
  const int64_t width = v.data && v.rank ? v.shape[v.rank - 1] : 0;
  for (int64_t row = 0; width > 0 && row < v.count() / width; ++row) {
    double sum = 0;
    for (int64_t c = 0; c < width; ++c) sum += std::pow(value_at(v, row * width + c), 2);
    if (std::isfinite(sum)) most = std::max(most, std::sqrt(sum));
  }
  return most;
}

double largest(const View& v) {
  double most = 0;
  for (int64_t i = 0; v.data && i < v.count(); ++i)
    if (const double x = std::abs(value_at(v, i)); std::isfinite(x)) most = std::max(most, x);
  return most;
}

bound::SoftmaxNorms with_scores(bound::SoftmaxNorms norms, double added, double error) {
  norms.bias += added + error / bound::kEpsilon;  // a bias counts with one epsilon
  return norms;
}

double scored(bound::SoftmaxNorms norms, double added, double error, std::string_view output) {
  norms = with_scores(norms, added, error);
  return output == "lse" ? bound::softmax_lse(norms) : bound::softmax(norms);
}

double parameter_gradient(const bound::SoftmaxNorms& norms, const Tensors& in, double slope, double error) {
  const bound::SoftmaxGradientNorms n = gradient_norms(norms, in);
  const View q = array(in, "q", "bound");
  const double rows = static_cast<double>(q.shape[0] * q.shape[2]);
  return rows * slope * (bound::softmax_slope_error(n) + (error + 8 * bound::kEpsilon) * bound::softmax_slope(n)) +
         1e-37;
}

double row_slope_error(const bound::SoftmaxGradientNorms& n) {
  return bound::softmax_slope_error(n) + bound::gamma(n.forward.keys / 16 + 32) * bound::softmax_slope(n);
}

double rows_gradient(const bound::SoftmaxGradientNorms& n, double rows, double factor, int64_t chain) {
  return rows * factor * (row_slope_error(n) + bound::gamma(chain + 8) * bound::softmax_slope(n)) + 1e-37;
}

double rows_weights(const bound::SoftmaxGradientNorms& n, double rows, double factor, int64_t chain) {
  const double weight = 2 * bound::softmax_weight(n.forward) + bound::gamma(n.forward.keys / 16 + 32);
  return rows * factor * (weight + bound::gamma(chain + 8)) + 1e-37;
}

double rotary_gradient(const bound::SoftmaxNorms& norms, const Tensors& in, double magnitude, std::string_view output) {
  if (output == "grad v") return softmax_bound(norms, in, output);
  bound::SoftmaxGradientNorms n = gradient_norms(norms, in);
  // An element of a rotated row is at most its length.
  n.q_max = norms.query;
  n.k_max = norms.key;
  const double rows = output == "grad q" ? 1 : static_cast<double>(n.rows),
               other = output == "grad q" ? n.k_max : n.q_max,
               moved = 15 * bound::kEpsilon * rows * norms.scale * other * bound::softmax_slope(n);
  return 2 * std::max(1.0, magnitude) * ((output == "grad q" ? bound::softmax_dq(n) : bound::softmax_dk(n)) + moved);
}

Reach reach_of(const Tensors& in, bool causal) {
  const View q = array(in, "q", "bound"), k = array(in, "k", "bound"), positions = array(in, "q_positions", "bound");
  Reach reach{0, 0};
  const int64_t queries = q.shape[2], keys = k.shape[2];
  for (int64_t row = 0; row < q.shape[0] * queries; ++row) {
    const double p = positions.data ? value_at(positions, row) : static_cast<double>(row % queries + keys - queries);
    const double last = static_cast<double>(keys - 1);
    if (keys == 0 || (causal && p < 0)) continue;
    reach.nearest = std::max({reach.nearest, -p, p - last});
    reach.farthest = std::max({reach.farthest, p, causal ? 0 : last - p});
  }
  return reach;
}

}  // namespace attend::exact
