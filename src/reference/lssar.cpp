#include "attend/reference/lssar.h"

#include <algorithm>
#include <cmath>

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
