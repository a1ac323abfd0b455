#include "attend/reference/relative.h"

#include "reference/gradients.h"

namespace attend {
namespace {

using namespace reference;

class RelativeReference : public Operator {
 public:
  explicit RelativeReference(const RelativeOptions& options) : o_(options) {}

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
    const View &q = required(in, "q"), &keys = required(in, "relative_keys"), content = optional(in, "content_bias"),
               position = optional(in, "position_bias"), dq = optional(grad_in, "q"), dk = optional(grad_in, "k"),
               dv = optional(grad_in, "v"), d_keys = optional(grad_in, "relative_keys"),
               d_values = optional(grad_in, "relative_values"), d_content = optional(grad_in, "content_bias"),
               d_position = optional(grad_in, "position_bias"), d_bias = optional(grad_in, "distance_bias");
    for (const View& grad : {dq, dk, dv, d_keys, d_values, d_content, d_position, d_bias}) clear(grad);
    softmax_over_backward(
        in, grad_out, o_.causal, [&](const Query& at, int64_t j) { return score(in, at, j); },
        [&](const Query& at, int64_t j, int64_t c) { return value(in, at, j, c); },
        [&](const Query& at, int64_t j, double gradient) {
          const double d = scale_of(o_.scale, q.shape[3]) * gradient;
          const int64_t r = row(in, at, j);
          add(d_bias, {at.h, r}, d);
          for (int64_t c = 0; c < q.shape[3]; ++c) {
            const double x = element(q, {at.b, at.h, at.i, c}), far = element(keys, {at.h, r, c});
            add(dq, {at.b, at.h, at.i, c}, d * (at.keys.k(j, c) + far));
            add(dk, {at.b, at.keys.head, j, c}, d * (x + (content.data ? element(content, {at.h, c}) : 0)));
            add(d_keys, {at.h, r, c}, d * (x + (position.data ? element(position, {at.h, c}) : 0)));
            add(d_content, {at.h, c}, d * at.keys.k(j, c));
            add(d_position, {at.h, c}, d * far);
          }
        },
        [&](const Query& at, int64_t j, int64_t c, double d) {
          add(dv, {at.b, at.keys.head, j, c}, d);
          add(d_values, {at.h, row(in, at, j), c}, d);
        });
  }

 private:
  int64_t row(const Tensors& in, const Query& at, int64_t j) const {
    const int64_t rows = required(in, "relative_keys").shape[1], clip = o_.past ? rows - 1 : (rows - 1) / 2;
    return std::clamp(at.keys.position(j) - at.position, -clip, o_.past ? 0 : clip) + clip;
  }

  double score(const Tensors& in, const Query& at, int64_t j) const {
    const View &q = required(in, "q"), &keys = required(in, "relative_keys"), content = optional(in, "content_bias"),
               position = optional(in, "position_bias"), bias = optional(in, "distance_bias");
    const int64_t r = row(in, at, j);
    double sum = bias.data ? element(bias, {at.h, r}) : 0;
    for (int64_t c = 0; c < q.shape[3]; ++c) {
      const double x = element(q, {at.b, at.h, at.i, c});
      sum += (x + (content.data ? element(content, {at.h, c}) : 0)) * at.keys.k(j, c);
      sum += (x + (position.data ? element(position, {at.h, c}) : 0)) * element(keys, {at.h, r, c});
    }
    return scale_of(o_.scale, q.shape[3]) * sum;
  }

  double value(const Tensors& in, const Query& at, int64_t j, int64_t c) const {
    const View values = optional(in, "relative_values");
    return at.keys.v(j, c) + (values.data ? element(values, {at.h, row(in, at, j), c}) : 0);
  }

  RelativeOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_relative_reference(const RelativeOptions& options) {
  return std::make_unique<RelativeReference>(options);
}

}  // namespace attend
