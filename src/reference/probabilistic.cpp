#include "attend/reference/probabilistic.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "reference/gradients.h"

namespace attend {
namespace {

using namespace reference;

class ProbabilisticReference : public Operator {
 public:
  explicit ProbabilisticReference(const ProbabilisticOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    auto specs = attention_outputs(in);
    specs.erase("lse");
    return specs;
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    softmax_over(in, out, false, [&](const Query& at, int64_t j) { return score(in, at, j); });
  }

  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override {
    const View &exist = required(in, "exist"), d_exist = optional(grad_in, "exist");
    clear(d_exist);
    dot_softmax_backward(
        in, grad_out, grad_in, false, o_.scale, [&](const Query& at, int64_t j) { return score(in, at, j); },
        [&](const Query& at, int64_t j, double d) {
          if (j <= at.i) return;
          for (const auto& [t, sign] : {std::pair{j, 1.0}, {at.i, -1.0}})
            if (const double x = element(exist, {at.b, t}); x > kLeast) add(d_exist, {at.b, t}, sign * d / x);
        });
  }

 private:
  static constexpr double kLeast = 1e-20;

  double score(const Tensors& in, const Query& at, int64_t j) const {
    const View &q = required(in, "q"), &exist = required(in, "exist");
    const double own = element(exist, {at.b, at.i}), other = element(exist, {at.b, j});
    if (own == 0 || other == 0) return -std::numeric_limits<double>::infinity();
    const double later = j > at.i ? std::log(std::max(other, kLeast)) - std::log(std::max(own, kLeast)) : 0;
    return scale_of(o_.scale, q.shape[3]) * dot(q, at, j) + later;
  }

  ProbabilisticOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_probabilistic_reference(const ProbabilisticOptions& options) {
  return std::make_unique<ProbabilisticReference>(options);
}

}  // namespace attend
