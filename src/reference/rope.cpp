#include "attend/reference/rope.h"

#include "reference/rotated.h"

namespace attend {
namespace {

using namespace reference;

class RopeReference : public Operator {
 public:
  RopeReference(const RopeOptions& rope, bool causal, double scale) : o_(rope), causal_(causal), scale_(scale) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    return attention_outputs(in);
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    Rotated rotated(o_, in);
    const double scale = scale_of(scale_, required(in, "q").shape[3]);
    softmax_over(in, out, causal_, [&](const Query& at, int64_t j) { return scale * rotated.dot(at, j); });
  }

  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override {
    Rotated rotated(o_, in);
    const double scale = scale_of(scale_, required(in, "q").shape[3]);
    rotated.backward(
        grad_out, grad_in, causal_, [&](const Query& at, int64_t j) { return scale * rotated.dot(at, j); },
        [&](const Query&, int64_t) { return scale; });
  }

 private:
  RopeOptions o_;
  bool causal_;
  double scale_;
};

}  // namespace

std::unique_ptr<Operator> make_rope_reference(const RopeOptions& rope, bool causal, double scale) {
  return std::make_unique<RopeReference>(rope, causal, scale);
}

}  // namespace attend
