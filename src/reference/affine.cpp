#include "attend/reference/affine.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "reference/row_reference.h"

namespace attend {
namespace {

using reference::element;
using reference::Row;

class AffineReference : public reference::RowReference {
 public:
  explicit AffineReference(const AffineOptions& options) : RowReference(options.causal, options.scale), o_(options) {}

 protected:
  void weigh(const Tensors& in, Row& row) const override {
    const double n = static_cast<double>(row.seen.size()),
                 alpha = element(reference::required(in, "alpha"), {row.b, row.h, row.i});
    double top = -std::numeric_limits<double>::infinity(), sum = 0;
    for (double s : row.weight) top = std::max(top, s);
    for (double& w : row.weight) sum += w = std::exp(w - top);
    for (double& w : row.weight) w = alpha * w / sum + (o_.average - alpha) / n;
  }

 private:
  AffineOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_affine_reference(const AffineOptions& options) {
  return std::make_unique<AffineReference>(options);
}

}  // namespace attend
