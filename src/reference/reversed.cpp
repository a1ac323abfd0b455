#include "attend/reference/reversed.h"

#include <cmath>
#include <vector>

#include "reference/inputs.h"

namespace attend {
namespace {

using reference::element;

class ReversedReference : public Operator {
 public:
  explicit ReversedReference(const ReversedOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    auto specs = reference::attention_outputs(in);
    specs.erase("lse");
    return specs;
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const View &q = reference::required(in, "q"), &result = reference::required(out, "out"),
               select = reference::optional(in, "select"), message = reference::optional(in, "message");
    const int64_t queries = q.shape[2], d = q.shape[3], dv = result.shape[3];
    const double scale = o_.scale == 0 ? 1 / std::sqrt(static_cast<double>(d)) : o_.scale;
    for (int64_t b = 0; b < q.shape[0]; ++b)
      for (int64_t h = 0; h < q.shape[1]; ++h) {
        const reference::Keys keys(in, b, h, q.shape[1], q.shape[0]);
        std::vector<double> sum(static_cast<size_t>(queries * dv), 0);
        for (int64_t j = 0; j < keys.count; ++j) {
          std::vector<double> weight;
          double top = -1e300, total = 0;
          for (int64_t i = 0; i < queries; ++i) {
            double s = 0;
            for (int64_t c = 0; c < d; ++c) s += element(q, {b, h, i, c}) * keys.k(j, c);
            weight.push_back(scale * s);
            top = std::max(top, weight.back());
          }
          for (double& w : weight) total += w = std::exp(w - top);
          const double gate =
              (select.data ? element(select, {b, h, j}) : 1) * (message.data ? element(message, {b, j}) : 1);
          for (int64_t i = 0; i < queries; ++i)
            for (int64_t c = 0; c < dv && gate != 0; ++c)
              sum[static_cast<size_t>(i * dv + c)] += weight[static_cast<size_t>(i)] / total * gate * keys.v(j, c);
        }
        for (int64_t i = 0; i < queries; ++i)
          for (int64_t c = 0; c < dv; ++c) reference::store(result, {b, h, i, c}, sum[static_cast<size_t>(i * dv + c)]);
      }
  }

 private:
  ReversedOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_reversed_reference(const ReversedOptions& options) {
  return std::make_unique<ReversedReference>(options);
}

}  // namespace attend
