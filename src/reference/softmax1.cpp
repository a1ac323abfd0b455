#include "attend/reference/softmax1.h"

#include "reference/gradients.h"

namespace attend {
namespace {

using namespace reference;

class Softmax1Reference : public Operator {
 public:
  explicit Softmax1Reference(const Softmax1Options& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    return attention_outputs(in);
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const View &q = required(in, "q"), result = optional(out, "out"), lse = optional(out, "lse");
    for (int64_t b = 0; b < q.shape[0]; ++b)
      for (int64_t h = 0; h < q.shape[1]; ++h)
        for (int64_t i = 0; i < q.shape[2]; ++i) {
          const Keys keys(in, b, h, q.shape[1], q.shape[0]);
          const Query at{b, h, i, query_position(in, b, i), keys};
          std::vector<int64_t> seen;
          std::vector<double> weight;
          for (int64_t j = 0; j < keys.count; ++j) {
            if (o_.causal && keys.position(j) > at.position) continue;
            if (const double s = score(in, at, j); s != -std::numeric_limits<double>::infinity())
              seen.push_back(j), weight.push_back(s);
          }
          double top = 0, sum = 0;  // 0: the score of the 1 in the denominator
          for (double s : weight) top = std::max(top, s);
          for (double& w : weight) sum += w = std::exp(w - top);
          sum += std::exp(-top);
          if (lse.data)
            store(lse, {b, h, i}, seen.empty() ? -std::numeric_limits<double>::infinity() : top + std::log(sum));
          for (int64_t c = 0; result.data && c < result.shape[3]; ++c) {
            double total = 0;
            for (size_t n = 0; n < seen.size(); ++n) total += weight[n] / sum * keys.v(seen[n], c);
            store(result, {b, h, i, c}, total);
          }
        }
  }

  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override {
    const View d_bias = optional(grad_in, "bias");
    clear(d_bias);
    dot_softmax_backward(
        in, grad_out, grad_in, o_.causal, o_.scale, [&](const Query& at, int64_t j) { return score(in, at, j); },
        [&](const Query& at, int64_t j, double d) {
          add(d_bias, {at.b, at.h, at.i, j}, d);
        },
        1);
  }

 private:
  double score(const Tensors& in, const Query& at, int64_t j) const {
    const View &q = required(in, "q"), bias = optional(in, "bias");
    return scale_of(o_.scale, q.shape[3]) * dot(q, at, j) + (bias.data ? element(bias, {at.b, at.h, at.i, j}) : 0);
  }

  Softmax1Options o_;
};

}  // namespace

std::unique_ptr<Operator> make_softmax1_reference(const Softmax1Options& options) {
  return std::make_unique<Softmax1Reference>(options);
}

}  // namespace attend
