#include "attend/reference/harmonic.h"

#include "reference/rotated.h"

namespace attend {
namespace {

using namespace reference;

class HarmonicReference : public Operator {
 public:
  explicit HarmonicReference(const HarmonicOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    return attention_outputs(in);
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    Rotated rotated(o_.rope, in);
    softmax_over(in, out, o_.causal, [&](const Query& at, int64_t j) { return score(in, rotated, at, j); });
  }

  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override {
    Rotated rotated(o_.rope, in);
    rotated.backward(
        grad_out, grad_in, o_.causal, [&](const Query& at, int64_t j) { return score(in, rotated, at, j); },
        [&](const Query& at, int64_t j) { return scale_of(o_.scale, required(in, "q").shape[3]) * factor(in, at, j); });
  }

 private:
  static int64_t distance(const Query& at, int64_t j) { return std::abs(at.position - at.keys.position(j)); }
  static double slope(const Tensors& in, const Query& at) {
    const View slopes = optional(in, "slopes");
    return slopes.data ? element(slopes, {at.h}) : 1;
  }
  double factor(const Tensors& in, const Query& at, int64_t j) const {
    return o_.added ? 1 : 1 / (1 + slope(in, at) * static_cast<double>(distance(at, j)));
  }

  double score(const Tensors& in, Rotated& rotated, const Query& at, int64_t j) const {
    double series = 0;
    for (int64_t n = 1; o_.added && n <= distance(at, j); ++n) series += 1 / static_cast<double>(n);
    return scale_of(o_.scale, required(in, "q").shape[3]) * rotated.dot(at, j) * factor(in, at, j) -
           slope(in, at) * series;
  }

  HarmonicOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_harmonic_reference(const HarmonicOptions& options) {
  return std::make_unique<HarmonicReference>(options);
}

}  // namespace attend
