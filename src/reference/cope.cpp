#include "attend/reference/cope.h"

#include "reference/gradients.h"

namespace attend {
namespace {

using namespace reference;

class CopeReference : public Operator {
 public:
  explicit CopeReference(const CopeOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    return attention_outputs(in);
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    std::vector<double> count;
    softmax_over(in, out, true, [&](const Query& at, int64_t j) { return score(in, at, j, count); });
  }

  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override {
    const View &q = required(in, "q"), &embeddings = required(in, "embeddings"), dq = optional(grad_in, "q"),
               dk = optional(grad_in, "k"), de = optional(grad_in, "embeddings");
    for (const View& grad : {dq, dk, de}) clear(grad);
    const double scale = scale_of(o_.scale, q.shape[3]);
    std::vector<double> count;
    double d_gate = 0;  // keys ascend: a gate counts for those before it and its own
    softmax_over_backward(
        in, grad_out, optional(grad_in, "v"), true, [&](const Query& at, int64_t j) { return score(in, at, j, count); },
        [&](const Query& at, int64_t j, double d) {
          const Between p = between(count, j, embeddings);
          for (const auto& [e, weight] : {std::pair{p.below, 1 - p.part}, {p.above, p.part}})
            for (int64_t c = 0; c < q.shape[3]; ++c) {
              add(dq, {at.b, at.h, at.i, c}, scale * d * weight * element(embeddings, {e, c}));
              add(de, {e, c}, scale * d * weight * element(q, {at.b, at.h, at.i, c}));
            }
          if (j == 0) d_gate = 0;
          d_gate += scale * d * (product(in, at, p.above) - product(in, at, p.below));
          const double g = 1 / (1 + std::exp(-scale * dot(q, at, j)));
          add_dot(q, dq, dk, at, j, scale * (d + d_gate * g * (1 - g)));
        });
  }

 private:
  struct Between {
    int64_t below, above;
    double part;
  };
  static Between between(const std::vector<double>& count, int64_t j, const View& embeddings) {
    const double p = std::min(count[static_cast<size_t>(j)], static_cast<double>(embeddings.shape[0] - 1)),
                 below = std::floor(p);
    return {static_cast<int64_t>(below), static_cast<int64_t>(std::ceil(p)), p - below};
  }

  static double product(const Tensors& in, const Query& at, int64_t e) {
    const View &q = required(in, "q"), &embeddings = required(in, "embeddings");
    double sum = 0;
    for (int64_t c = 0; c < q.shape[3]; ++c) sum += element(q, {at.b, at.h, at.i, c}) * element(embeddings, {e, c});
    return sum;
  }

  // `count` are the p[i, j] of the query at hand: key 0 is its first.
  double score(const Tensors& in, const Query& at, int64_t j, std::vector<double>& count) const {
    const View& q = required(in, "q");
    const double scale = scale_of(o_.scale, q.shape[3]);
    if (j == 0) {
      count.assign(static_cast<size_t>(std::max<int64_t>(0, at.position + 1)), 0);
      double sum = 0;
      for (int64_t t = at.position; t >= 0; --t)
        count[static_cast<size_t>(t)] = sum += 1 / (1 + std::exp(-scale * dot(q, at, t)));
    }
    const Between p = between(count, j, required(in, "embeddings"));
    return scale * (dot(q, at, j) + product(in, at, p.above) * p.part + product(in, at, p.below) * (1 - p.part));
  }

  CopeOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_cope_reference(const CopeOptions& options) {
  return std::make_unique<CopeReference>(options);
}

}  // namespace attend
