#include "attend/reference/dca.h"

#include "reference/gradients.h"
#include "reference/rope_pairs.h"

namespace attend {
namespace {

using namespace reference;

class DcaReference : public Operator {
 public:
  explicit DcaReference(const DcaOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    return attention_outputs(in);
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const Rope rope = rope_of(in);
    softmax_over(in, out, true, [&](const Query& at, int64_t j) { return score(in, rope, at, j); });
  }

  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override {
    const View &q = required(in, "q"), dq = optional(grad_in, "q"), dk = optional(grad_in, "k");
    for (const View& grad : {dq, dk}) clear(grad);
    const Rope rope = rope_of(in);
    softmax_over_backward(
        in, grad_out, optional(grad_in, "v"), true, [&](const Query& at, int64_t j) { return score(in, rope, at, j); },
        [&](const Query& at, int64_t j, double d) {
          each_product(in, rope, at, j, [&](int64_t a, int64_t b, double factor) {
            add(dq, {at.b, at.h, at.i, a}, d * factor * at.keys.k(j, b));
            add(dk, {at.b, at.keys.head, j, b}, d * factor * element(q, {at.b, at.h, at.i, a}));
          });
        });
  }

 private:
  Rope rope_of(const Tensors& in) const { return Rope(o_.rope, required(in, "q").shape[3], 0); }

  double score(const Tensors& in, const Rope& rope, const Query& at, int64_t j) const {
    const View& q = required(in, "q");
    double sum = 0;
    each_product(in, rope, at, j, [&](int64_t a, int64_t b, double factor) {
      sum += factor * element(q, {at.b, at.h, at.i, a}) * at.keys.k(j, b);
    });
    return sum;
  }

  // The score of a pair is a sum over products of elements a of the query and b of the key, times factors: f(a, b,
  // factor). They depend on the two positions through their difference alone.
  template <class F>
  void each_product(const Tensors& in, const Rope& rope, const Query& at, int64_t j, F f) const {
    const int64_t d = required(in, "q").shape[3], s = o_.chunk_tokens(), i = at.position;
    int64_t x = o_.context - 1;
    if (i / s == j / s) x = i % s;
    if (i / s == j / s + 1) x = std::min(i % s + s, o_.context - 1);
    const double scale = scale_of(o_.scale, d);
    for (int64_t c = rope.dims; c < d; ++c) f(c, c, scale);
    for (int64_t p = 0; p < rope.dims / 2; ++p) {
      const double angle = static_cast<double>(x - j % s) * rope.frequency[static_cast<size_t>(p)],
                   factor = scale * rope.magnitude() * rope.magnitude();
      const int64_t first = rope.first(p), second = rope.second(p);
      f(first, first, factor * std::cos(angle));
      f(second, second, factor * std::cos(angle));
      f(first, second, factor * std::sin(angle));
      f(second, first, -factor * std::sin(angle));
    }
  }

  DcaOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_dca_reference(const DcaOptions& options) {
  return std::make_unique<DcaReference>(options);
}

}  // namespace attend
