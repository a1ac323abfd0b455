#include "attend/reference/affine.h"

#include "reference/gradients.h"

namespace attend {
namespace {

using namespace reference;

class AffineReference : public Operator {
 public:
  explicit AffineReference(const AffineOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    auto specs = attention_outputs(in);
    specs.erase("lse");
    return specs;
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const View& result = required(out, "out");
    each_row(in,
             [&](const Query& at, double alpha, const std::vector<int64_t>& seen, const std::vector<double>& weight) {
               for (int64_t c = 0; c < result.shape[3]; ++c) {
                 double sum = 0;
                 for (size_t n = 0; n < seen.size(); ++n)
                   sum += affine(alpha, weight[n], seen.size()) * at.keys.v(seen[n], c);
                 store(result, {at.b, at.h, at.i, c}, sum);
               }
             });
  }

  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override {
    const View &q = required(in, "q"), &d_out = required(grad_out, "out"), dq = optional(grad_in, "q"),
               dk = optional(grad_in, "k"), dv = optional(grad_in, "v"), d_alpha = optional(grad_in, "alpha");
    for (const View& grad : {dq, dk, dv, d_alpha}) clear(grad);
    each_row(
        in, [&](const Query& at, double alpha, const std::vector<int64_t>& seen, const std::vector<double>& weight) {
          std::vector<double> gradient;
          double mean = 0, all = 0;
          for (size_t n = 0; n < seen.size(); ++n) {
            double g = 0;
            for (int64_t c = 0; c < d_out.shape[3]; ++c) {
              const double d = element(d_out, {at.b, at.h, at.i, c});
              g += d * at.keys.v(seen[n], c);
              add(dv, {at.b, at.keys.head, seen[n], c}, affine(alpha, weight[n], seen.size()) * d);
            }
            gradient.push_back(g);
            mean += weight[n] * g;
            all += g;
          }
          if (!seen.empty()) add(d_alpha, {at.b, at.h, at.i}, mean - all / static_cast<double>(seen.size()));
          for (size_t n = 0; n < seen.size(); ++n)
            add_dot(q, dq, dk, at, seen[n], scale_of(o_.scale, q.shape[3]) * alpha * weight[n] * (gradient[n] - mean));
        });
  }

 private:
  double affine(double alpha, double weight, size_t keys) const {
    return alpha * weight + (o_.average - alpha) / static_cast<double>(keys);
  }

  // f(query, alpha, keys that it sees, their softmax weights).
  template <class F>
  void each_row(const Tensors& in, F f) const {
    const View &q = required(in, "q"), &alpha = required(in, "alpha");
    for (int64_t b = 0; b < q.shape[0]; ++b)
      for (int64_t h = 0; h < q.shape[1]; ++h)
        for (int64_t i = 0; i < q.shape[2]; ++i) {
          const Keys keys(in, b, h, q.shape[1], q.shape[0]);
          const Query at{b, h, i, query_position(in, b, i), keys};
          std::vector<int64_t> seen;
          std::vector<double> weight;
          double top = -std::numeric_limits<double>::infinity(), sum = 0;
          for (int64_t j = 0; j < keys.count; ++j) {
            if (o_.causal && keys.position(j) > at.position) continue;
            seen.push_back(j);
            weight.push_back(scale_of(o_.scale, q.shape[3]) * dot(q, at, j));
            top = std::max(top, weight.back());
          }
          for (double& w : weight) sum += w = std::exp(w - top);
          for (double& w : weight) w /= sum;
          f(at, element(alpha, {b, h, i}), seen, weight);
        }
  }

  AffineOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_affine_reference(const AffineOptions& options) {
  return std::make_unique<AffineReference>(options);
}

}  // namespace attend
