#include "attend/reference/sigmoid.h"

#include "reference/gradients.h"

namespace attend {
namespace {

using namespace reference;

class SigmoidReference : public Operator {
 public:
  explicit SigmoidReference(const SigmoidOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    auto specs = attention_outputs(in);
    specs.erase("lse");
    return specs;
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const View& result = required(out, "out");
    each_row(in, [&](const Query& at, const std::vector<int64_t>& seen, const std::vector<double>& weight) {
      for (int64_t c = 0; c < result.shape[3]; ++c) {
        double sum = 0;
        for (size_t n = 0; n < seen.size(); ++n)
          if (weight[n] != 0) sum += weight[n] * at.keys.v(seen[n], c);
        store(result, {at.b, at.h, at.i, c}, sum);
      }
    });
  }

  // d sigmoid(x) / d x = sigmoid(x) (1 - sigmoid(x)).
  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override {
    const View &q = required(in, "q"), &d_out = required(grad_out, "out"), dq = optional(grad_in, "q"),
               dk = optional(grad_in, "k"), dv = optional(grad_in, "v"), d_bias = optional(grad_in, "bias");
    for (const View& grad : {dq, dk, dv, d_bias}) clear(grad);
    each_row(in, [&](const Query& at, const std::vector<int64_t>& seen, const std::vector<double>& weight) {
      for (size_t n = 0; n < seen.size(); ++n) {
        double g = 0;
        for (int64_t c = 0; c < d_out.shape[3]; ++c) {
          const double d = element(d_out, {at.b, at.h, at.i, c});
          g += d * at.keys.v(seen[n], c);
          add(dv, {at.b, at.keys.head, seen[n], c}, weight[n] * d);
        }
        const double d_score = weight[n] * (1 - weight[n]) * g;
        add(d_bias, {at.b, at.h, at.i, seen[n]}, d_score);
        add_dot(q, dq, dk, at, seen[n], scale_of(o_.scale, q.shape[3]) * d_score);
      }
    });
  }

 private:
  // f(query, keys that it sees, their weights).
  template <class F>
  void each_row(const Tensors& in, F f) const {
    const View &q = required(in, "q"), bias = optional(in, "bias");
    each_query(in, [&](const Query& at) {
      const Keys& keys = at.keys;
      std::vector<int64_t> seen;
      std::vector<double> weight;
      for (int64_t j = 0; j < keys.count; ++j)
        if (!o_.causal || keys.position(j) <= at.position) seen.push_back(j);
      for (int64_t j : seen) {
        const double s = scale_of(o_.scale, q.shape[3]) * dot(q, at, j) +
                         (bias.data ? element(bias, {at.b, at.h, at.i, j}) : 0) + o_.bias -
                         std::log(static_cast<double>(seen.size()));
        weight.push_back(1 / (1 + std::exp(-s)));
      }
      f(at, seen, weight);
    });
  }

  SigmoidOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_sigmoid_reference(const SigmoidOptions& options) {
  return std::make_unique<SigmoidReference>(options);
}

}  // namespace attend
