#include "attend/reference/sigmoid.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "reference/row_reference.h"

namespace attend {
namespace {

using reference::element;
using reference::Row;

class SigmoidReference : public reference::RowReference {
 public:
  explicit SigmoidReference(const SigmoidOptions& options) : RowReference(options.causal, options.scale), o_(options) {}

 protected:
  void weigh(const Tensors&, Row& row) const override {
    const double n = static_cast<double>(row.seen.size());
    for (double& w : row.weight) w = 1 / (1 + std::exp(-(w + o_.bias - std::log(n))));
  }

 private:
  SigmoidOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_sigmoid_reference(const SigmoidOptions& options) {
  return std::make_unique<SigmoidReference>(options);
}

}  // namespace attend
