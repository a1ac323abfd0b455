#include "attend/reference/relu.h"

#include "reference/row_reference.h"

namespace attend {
namespace {

using reference::element;
using reference::Row;

class ReluReference : public reference::RowReference {
 public:
  explicit ReluReference(const ReluOptions& options) : RowReference(options.causal, options.scale), o_(options) {}

 protected:
  void weigh(const Tensors&, Row& row) const override {
    const double n = static_cast<double>(row.seen.size());
    for (double& w : row.weight) w = w < 0 ? 0 : w / n;
  }

  // d weight / d score = 1 / n above 0.
  void pull(const Tensors&, const Row& row, const std::vector<double>& gradient,
            std::vector<double>& d_score) const override {
    for (size_t j = 0; j < row.seen.size(); ++j)
      d_score[j] = row.weight[j] > 0 ? gradient[j] / static_cast<double>(row.seen.size()) : 0;
  }

 private:
  ReluOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_relu_reference(const ReluOptions& options) {
  return std::make_unique<ReluReference>(options);
}

}  // namespace attend
