#include "attend/reference/probabilistic.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "reference/row_reference.h"

namespace attend {
namespace {

using reference::element;
using reference::Row;

class ProbabilisticReference : public reference::RowReference {
 public:
  explicit ProbabilisticReference(const ProbabilisticOptions& options) : RowReference(false, options.scale) {}

 protected:
  void weigh(const Tensors& in, Row& row) const override {
    const View& exist = reference::required(in, "exist");
    auto log = [&](int64_t t) { return std::log(std::max(element(exist, {row.b, t}), 1e-20)); };
    double top = -std::numeric_limits<double>::infinity(), sum = 0;
    for (size_t at = 0; at < row.seen.size(); ++at) {
      const int64_t j = row.seen[at];
      if (j > row.i) row.weight[at] += log(j) - log(row.i);
      if (element(exist, {row.b, j}) == 0) row.weight[at] = -std::numeric_limits<double>::infinity();
      top = std::max(top, row.weight[at]);
    }
    const bool nothing = top == -std::numeric_limits<double>::infinity() || element(exist, {row.b, row.i}) == 0;
    for (double& w : row.weight) sum += w = nothing ? 0 : std::exp(w - top);
    for (double& w : row.weight) w = nothing ? 0 : w / sum;
  }
};

}  // namespace

std::unique_ptr<Operator> make_probabilistic_reference(const ProbabilisticOptions& options) {
  return std::make_unique<ProbabilisticReference>(options);
}

}  // namespace attend
