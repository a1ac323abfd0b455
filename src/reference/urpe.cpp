#include "attend/reference/urpe.h"

#include "reference/gradients.h"

namespace attend {
namespace {

using namespace reference;

class UrpeReference : public Operator {
 public:
  explicit UrpeReference(const UrpeOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    return attention_outputs(in);
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    softmax_over(
        in, out, o_.causal, [&](const Query& at, int64_t j) { return score(in, at, j); },
        [&](const Query& at, int64_t j, int64_t c) { return value(in, at, j, c); });
  }

  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override {
    const View &q = required(in, "q"), &multiplier = required(in, "multiplier"), dq = optional(grad_in, "q"),
               dk = optional(grad_in, "k"), dv = optional(grad_in, "v"), d_multiplier = optional(grad_in, "multiplier"),
               d_bias = optional(grad_in, "distance_bias");
    for (const View& grad : {dq, dk, dv, d_multiplier, d_bias}) clear(grad);
    softmax_over_backward(
        in, grad_out, o_.causal, [&](const Query& at, int64_t j) { return score(in, at, j); },
        [&](const Query& at, int64_t j, int64_t c) { return value(in, at, j, c); },
        [&](const Query& at, int64_t j, double d) {
          add(d_bias, {at.h, column(in, at, j)}, d);
          add_dot(q, dq, dk, at, j, scale_of(o_.scale, q.shape[3]) * d);
        },
        [&](const Query& at, int64_t j, int64_t c, double d) {
          add(dv, {at.b, at.keys.head, j, c}, d * element(multiplier, {at.h, column(in, at, j)}));
          add(d_multiplier, {at.h, column(in, at, j)}, d * at.keys.v(j, c));
        });
  }

 private:
  static int64_t column(const Tensors& in, const Query& at, int64_t j) {
    const int64_t clip = (required(in, "multiplier").shape[1] - 1) / 2;
    return std::clamp(at.keys.position(j) - at.position, -clip, clip) + clip;
  }

  double score(const Tensors& in, const Query& at, int64_t j) const {
    const View &q = required(in, "q"), bias = optional(in, "distance_bias");
    return scale_of(o_.scale, q.shape[3]) * dot(q, at, j) + (bias.data ? element(bias, {at.h, column(in, at, j)}) : 0);
  }

  static double value(const Tensors& in, const Query& at, int64_t j, int64_t c) {
    return element(required(in, "multiplier"), {at.h, column(in, at, j)}) * at.keys.v(j, c);
  }

  UrpeOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_urpe_reference(const UrpeOptions& options) {
  return std::make_unique<UrpeReference>(options);
}

}  // namespace attend
