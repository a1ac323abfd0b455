#include "attend/reference/fire.h"

#include "reference/gradients.h"

namespace attend {
namespace {

using namespace reference;

class FireReference : public Operator {
 public:
  explicit FireReference(const FireOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    return attention_outputs(in);
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    softmax_over(in, out, o_.causal, [&](const Query& at, int64_t j) { return score(in, at, j); });
  }

  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override {
    const View &weight = required(in, "weight"), d_inner_weight = optional(grad_in, "inner_weight"),
               d_inner_bias = optional(grad_in, "inner_bias"), d_weight = optional(grad_in, "weight"),
               d_outer_bias = optional(grad_in, "outer_bias");
    for (const View& grad : {d_inner_weight, d_inner_bias, d_weight, d_outer_bias}) clear(grad);
    dot_softmax_backward(
        in, grad_out, grad_in, o_.causal, o_.scale, [&](const Query& at, int64_t j) { return score(in, at, j); },
        [&](const Query& at, int64_t j, double d) {
          add(d_outer_bias, {at.h}, d);
          const double x = interpolated(at, j);
          for (int64_t u = 0; u < weight.shape[1]; ++u) {
            const double z = hidden(in, u, x);
            if (z <= 0) continue;
            add(d_weight, {at.h, u}, d * z);
            add(d_inner_weight, {u}, d * element(weight, {at.h, u}) * x);
            add(d_inner_bias, {u}, d * element(weight, {at.h, u}));
          }
        });
  }

 private:
  double phi(double d) const { return std::log(1 + o_.rate * d); }

  double interpolated(const Query& at, int64_t j) const {
    const double distance = std::abs(static_cast<double>(at.position - at.keys.position(j)));
    return phi(distance) / phi(std::max(o_.threshold, static_cast<double>(at.position)));
  }

  // Before the ReLU.
  static double hidden(const Tensors& in, int64_t u, double x) {
    return element(required(in, "inner_weight"), {u}) * x + element(required(in, "inner_bias"), {u});
  }

  double score(const Tensors& in, const Query& at, int64_t j) const {
    const View &q = required(in, "q"), &weight = required(in, "weight"), outer_bias = optional(in, "outer_bias");
    const double x = interpolated(at, j);
    double bias = outer_bias.data ? element(outer_bias, {at.h}) : 0;
    for (int64_t u = 0; u < weight.shape[1]; ++u) bias += element(weight, {at.h, u}) * std::max(0.0, hidden(in, u, x));
    return scale_of(o_.scale, q.shape[3]) * dot(q, at, j) + bias;
  }

  FireOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_fire_reference(const FireOptions& options) {
  return std::make_unique<FireReference>(options);
}

}  // namespace attend
