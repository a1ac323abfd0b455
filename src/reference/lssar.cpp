#include "attend/reference/lssar.h"

#include <algorithm>
#include <cmath>

#include "reference/gradients.h"
#include "reference/row_reference.h"

namespace attend {
namespace {

using reference::element;
using reference::Row;

class LssarReference : public reference::RowReference {
 public:
  explicit LssarReference(const LssarOptions& options) : RowReference(options.causal, options.scale), o_(options) {}

 protected:
  double score(const Tensors& in, const Row& row, const reference::Keys& keys, int64_t j) const override {
    const View& q = reference::required(in, "q");
    double s = 0, q_norm = 0, k_norm = 0;
    for (int64_t c = 0; c < q.shape[3]; ++c) {
      const double x = element(q, {row.b, row.h, row.i, c}), y = keys.k(j, c);
      s += x * y, q_norm += x * x, k_norm += y * y;
    }
    return s == 0 ? 0 : s / std::sqrt(q_norm) / std::sqrt(k_norm);
  }

  void weigh(const Tensors& in, Row& row) const override {
    const double n = static_cast<double>(row.seen.size()),
                 d = static_cast<double>(reference::required(in, "q").shape[3]);
    const double scale = o_.scale == 0 ? std::log(d) * std::log(n) : o_.scale;
    for (double& w : row.weight) w = std::log1p(std::exp(scale * w));
    normalise(row);
    if (o_.power == 0) return;
    for (double& w : row.weight)
      w = std::pow(std::max(0.0, w * n - (n > 3 ? 1 : 0)), static_cast<double>(o_.power)) + 0 * w;
    normalise(row);
  }

  // Back through both normalisations, the power, the shift and the softplus.
  void pull(const Tensors& in, const Row& row, const std::vector<double>& gradient,
            std::vector<double>& d_score) const override {
    const View& q = reference::required(in, "q");
    const double n = static_cast<double>(row.seen.size()), power = static_cast<double>(o_.power),
                 scale = o_.scale == 0 ? std::log(static_cast<double>(q.shape[3])) * std::log(n) : o_.scale;
    const reference::Keys keys(in, row.b, row.h, q.shape[1], q.shape[0]);
    std::vector<double> cosine, share, d_share = gradient;
    double sum = 0, second = 0, mean = 0;
    for (int64_t j : row.seen) {
      cosine.push_back(score(in, row, keys, j));
      share.push_back(std::log1p(std::exp(scale * cosine.back())));
      sum += share.back();
    }
    for (double& a : share) a /= sum;
    auto shifted = [&](size_t j) { return std::max(0.0, share[j] * n - (n > 3 ? 1 : 0)); };
    if (o_.power > 0) {
      for (size_t j = 0; j < share.size(); ++j) {
        second += std::pow(shifted(j), power);
        mean += row.weight[j] * gradient[j];
      }
      for (size_t j = 0; j < share.size(); ++j)
        d_share[j] = shifted(j) > 0 ? n * power * std::pow(shifted(j), power - 1) / second * (gradient[j] - mean) : 0;
    }
    mean = 0;
    for (size_t j = 0; j < share.size(); ++j) mean += share[j] * d_share[j];
    for (size_t j = 0; j < share.size(); ++j)
      d_score[j] = (d_share[j] - mean) / sum * scale / (1 + std::exp(-scale * cosine[j]));
  }

  // d cos / d q = (k / |k| - cos q / |q|) / |q|, and likewise of k; 0 where a vector is.
  void add_score(const Tensors& in, const reference::Query& at, int64_t j, double d, const View& dq,
                 const View& dk) const override {
    const View& q = reference::required(in, "q");
    double dot = 0, q_norm = 0, k_norm = 0;
    for (int64_t c = 0; c < q.shape[3]; ++c) {
      const double x = element(q, {at.b, at.h, at.i, c}), y = at.keys.k(j, c);
      dot += x * y, q_norm += x * x, k_norm += y * y;
    }
    if (q_norm == 0 || k_norm == 0) return;
    const double length = std::sqrt(q_norm * k_norm);
    for (int64_t c = 0; c < q.shape[3]; ++c) {
      const double x = element(q, {at.b, at.h, at.i, c}), y = at.keys.k(j, c);
      reference::add(dq, {at.b, at.h, at.i, c}, d / length * (y - dot / q_norm * x));
      reference::add(dk, {at.b, at.keys.head, j, c}, d / length * (x - dot / k_norm * y));
    }
  }

  static void normalise(Row& row) {
    double sum = 0;
    for (double w : row.weight) sum += w;
    for (double& w : row.weight) w = sum == 0 ? 0 : w / sum;
  }

 private:
  LssarOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_lssar_reference(const LssarOptions& options) {
  return std::make_unique<LssarReference>(options);
}

}  // namespace attend
