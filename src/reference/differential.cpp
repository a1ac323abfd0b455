#include "attend/reference/differential.h"

#include <cmath>
#include <limits>
#include <vector>

#include "reference/inputs.h"

namespace attend {
namespace {

using reference::element;

class DifferentialReference : public Operator {
 public:
  explicit DifferentialReference(const DifferentialOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    auto specs = reference::attention_outputs(in);
    specs.erase("lse");
    return specs;
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const View &q = reference::required(in, "q"), &noise = reference::required(in, "q_noise"),
               &k_noise = reference::required(in, "k_noise"), &result = reference::required(out, "out"),
               given = reference::optional(in, "lambda");
    const int64_t d = q.shape[3], heads = q.shape[1];
    const double scale = o_.scale == 0 ? 1 / std::sqrt(static_cast<double>(d)) : o_.scale;
    for (int64_t b = 0; b < q.shape[0]; ++b)
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t i = 0; i < q.shape[2]; ++i) {
          const reference::Keys keys(in, b, h, heads, q.shape[0]);
          const int64_t position = reference::query_position(in, b, i), group = h / (heads / noise.shape[1]);
          std::vector<double> signal_score, noise_score;
          for (int64_t j = 0; j < keys.count; ++j) {
            if (o_.causal && keys.position(j) > position) continue;
            double s = 0, n = 0;
            for (int64_t c = 0; c < d; ++c) {
              s += element(q, {b, h, i, c}) * keys.k(j, c);
              n += element(noise, {b, group, i, c}) * element(k_noise, {b, keys.head, j, c});
            }
            signal_score.push_back(scale * s);
            noise_score.push_back(scale * n);
          }
          const std::vector<double> a = softmax(signal_score), n = softmax(noise_score);
          const double lambda = given.data ? element(given, {b, h, i}) : o_.lambda;
          for (int64_t c = 0; c < result.shape[3]; ++c) {
            double sum = 0;
            size_t at = 0;
            for (int64_t j = 0; j < keys.count; ++j) {
              if (o_.causal && keys.position(j) > position) continue;
              sum += (a[at] - lambda * n[at]) * keys.v(j, c);
              ++at;
            }
            reference::store(result, {b, h, i, c}, sum);
          }
        }
  }

 private:
  static std::vector<double> softmax(std::vector<double> s) {
    double top = -std::numeric_limits<double>::infinity(), sum = 0;
    for (double x : s) top = std::max(top, x);
    for (double& x : s) sum += x = std::exp(x - top);
    for (double& x : s) x /= sum;
    return s;
  }

  DifferentialOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_differential_reference(const DifferentialOptions& options) {
  return std::make_unique<DifferentialReference>(options);
}

}  // namespace attend
