#include "attend/reference/coca.h"

#include "reference/gradients.h"
#include "reference/rope_pairs.h"

namespace attend {
namespace {

using namespace reference;

// As the paper says it: a key for every query, collinear with it, both rotated, their dot product.
class CocaReference : public Operator {
 public:
  explicit CocaReference(const CocaOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    return attention_outputs(in);
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const Rope rope = rope_of(in);
    softmax_over(in, out, o_.causal, [&](const Query& at, int64_t j) { return score(in, rope, at, j); });
  }

  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override {
    const View &q = required(in, "q"), dq = optional(grad_in, "q"), dk = optional(grad_in, "k");
    for (const View& grad : {dq, dk}) clear(grad);
    const Rope rope = rope_of(in);
    softmax_over_backward(
        in, grad_out, optional(grad_in, "v"), o_.causal,
        [&](const Query& at, int64_t j) { return score(in, rope, at, j); },
        [&](const Query& at, int64_t j, double gradient) {
          const double d = scale_of(o_.scale, q.shape[3]) * gradient;
          for (int64_t p = 0; p < q.shape[3] / 2; ++p) {
            const int64_t first = rope.first(p), second = rope.second(p);
            const double qa = element(q, {at.b, at.h, at.i, first}), qb = element(q, {at.b, at.h, at.i, second}),
                         mean = (at.keys.k(j, first) + at.keys.k(j, second)) / 2,
                         turn = std::cos(static_cast<double>(at.position - j) * rope.frequency[static_cast<size_t>(p)]);
            add(dq, {at.b, at.h, at.i, first}, 2 * qa * std::max(0.0, mean) * turn * d);
            add(dq, {at.b, at.h, at.i, second}, 2 * qb * std::max(0.0, mean) * turn * d);
            if (mean <= 0) continue;
            for (const int64_t c : {first, second})
              add(dk, {at.b, at.keys.head, j, c}, (qa * qa + qb * qb) / 2 * turn * d);
          }
        });
  }

 private:
  Rope rope_of(const Tensors& in) const {
    return Rope({.base = o_.base, .interleaved = o_.interleaved}, required(in, "q").shape[3], 0);
  }

  double score(const Tensors& in, const Rope& rope, const Query& at, int64_t j) const {
    const View& q = required(in, "q");
    const int64_t d = q.shape[3];
    double sum = 0;
    for (int64_t p = 0; p < d / 2; ++p) {
      const double qa = element(q, {at.b, at.h, at.i, rope.first(p)}),
                   qb = element(q, {at.b, at.h, at.i, rope.second(p)});
      const double gate = std::max(0.0, (at.keys.k(j, rope.first(p)) + at.keys.k(j, rope.second(p))) / 2);
      const double ka = gate * qa, kb = gate * qb;
      const double x = static_cast<double>(at.position) * rope.frequency[static_cast<size_t>(p)],
                   y = static_cast<double>(j) * rope.frequency[static_cast<size_t>(p)];
      sum += (qa * std::cos(x) - qb * std::sin(x)) * (ka * std::cos(y) - kb * std::sin(y)) +
             (qa * std::sin(x) + qb * std::cos(x)) * (ka * std::sin(y) + kb * std::cos(y));
    }
    return scale_of(o_.scale, d) * sum;
  }

  CocaOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_coca_reference(const CocaOptions& options) {
  return std::make_unique<CocaReference>(options);
}

}  // namespace attend
