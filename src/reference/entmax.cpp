#include "attend/reference/entmax.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "reference/row_reference.h"

namespace attend {
namespace {

using reference::element;
using reference::Row;

class EntmaxReference : public reference::RowReference {
 public:
  explicit EntmaxReference(const EntmaxOptions& options) : RowReference(options.causal, options.scale), o_(options) {}

 protected:
  void weigh(const Tensors&, Row& row) const override {
    // weight(t) = max(0, (alpha - 1) s - t)^(1 / (alpha - 1)) sums to 1 for one t, between top - 1 and top.
    double top = -std::numeric_limits<double>::infinity();
    for (double& s : row.weight) top = std::max(top, s *= o_.alpha - 1);
    auto weight = [&](double s, double t) { return s > t ? std::pow(s - t, 1 / (o_.alpha - 1)) : s == s ? 0 : s; };
    double low = top - 1, high = top;
    for (int step = 0; step < 200; ++step) {
      const double middle = low + (high - low) / 2;
      double sum = 0;
      for (double s : row.weight) sum += weight(s, middle);
      (sum >= 1 ? low : high) = middle;
    }
    double sum = 0;
    for (double& w : row.weight) sum += w = weight(w, low);
    for (double& w : row.weight) w /= sum;
  }

  // u = w^(2 - alpha) where w > 0: d w[t] / d s[j] = u[t] ([t = j] - u[j] / sum of u).
  void pull(const Tensors&, const Row& row, const std::vector<double>& gradient,
            std::vector<double>& d_score) const override {
    std::vector<double> u;
    double sum = 0, mean = 0;
    for (size_t j = 0; j < row.weight.size(); ++j) {
      u.push_back(row.weight[j] > 0 ? std::pow(row.weight[j], 2 - o_.alpha) : 0);
      sum += u[j];
      mean += u[j] * gradient[j];
    }
    for (size_t j = 0; j < u.size(); ++j) d_score[j] = u[j] * (gradient[j] - mean / sum);
  }

 private:
  EntmaxOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_entmax_reference(const EntmaxOptions& options) {
  return std::make_unique<EntmaxReference>(options);
}

}  // namespace attend
