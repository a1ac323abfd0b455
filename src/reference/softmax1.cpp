#include "attend/reference/softmax1.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "reference/row_reference.h"

namespace attend {
namespace {

using reference::element;
using reference::Row;

class Softmax1Reference : public reference::RowReference {
 public:
  explicit Softmax1Reference(const Softmax1Options& options)
      : RowReference(options.causal, options.scale), o_(options) {}

 protected:
  void weigh(const Tensors&, Row& row) const override {
    double top = 0, sum = 0;
    for (double s : row.weight) top = std::max(top, s);
    for (double s : row.weight) sum += std::exp(s - top);
    for (double& w : row.weight) w = std::exp(w - top) / (std::exp(-top) + sum);
  }

 private:
  Softmax1Options o_;
};

}  // namespace

std::unique_ptr<Operator> make_softmax1_reference(const Softmax1Options& options) {
  return std::make_unique<Softmax1Reference>(options);
}

}  // namespace attend
