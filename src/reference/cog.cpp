#include "attend/reference/cog.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "reference/row_reference.h"

namespace attend {
namespace {

using reference::element;
using reference::Row;

class CogReference : public reference::RowReference {
 public:
  explicit CogReference(const CogOptions& options) : RowReference(options.causal, options.scale), o_(options) {}

 protected:
  void weigh(const Tensors&, Row& row) const override {
    double top = 0, sum = 0;
    for (double s : row.weight) top = std::max(top, std::abs(s));
    for (double s : row.weight) sum += std::exp(std::abs(s) - top);
    for (double& w : row.weight) {
      const double sign = w > 0 ? 1 : w < 0 ? -1 : w;  // of a NaN, too
      w = sign * std::exp(std::abs(w) - top) / sum;
    }
  }

 private:
  CogOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_cog_reference(const CogOptions& options) {
  return std::make_unique<CogReference>(options);
}

}  // namespace attend
