#include "attend/reference/fire.h"

#include "reference/softmax_over.h"

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
    const View &q = required(in, "q"), &inner_weight = required(in, "inner_weight"),
               &inner_bias = required(in, "inner_bias"), &weight = required(in, "weight"),
               outer_bias = optional(in, "outer_bias");
    auto phi = [&](double d) { return std::log(1 + o_.rate * d); };
    softmax_over(in, out, o_.causal, [&](const Query& at, int64_t j) {
      const double distance = std::abs(static_cast<double>(at.position - at.keys.position(j)));
      const double x = phi(distance) / phi(std::max(o_.threshold, static_cast<double>(at.position)));
      double bias = outer_bias.data ? element(outer_bias, {at.h}) : 0;
      for (int64_t u = 0; u < inner_weight.shape[0]; ++u)
        bias += element(weight, {at.h, u}) * std::max(0.0, element(inner_weight, {u}) * x + element(inner_bias, {u}));
      return scale_of(o_.scale, q.shape[3]) * dot(q, at, j) + bias;
    });
  }

 private:
  FireOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_fire_reference(const FireOptions& options) {
  return std::make_unique<FireReference>(options);
}

}  // namespace attend
