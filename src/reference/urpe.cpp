#include "attend/reference/urpe.h"

#include "reference/softmax_over.h"

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
    const View &q = required(in, "q"), &multiplier = required(in, "multiplier"), bias = optional(in, "distance_bias");
    const int64_t clip = (multiplier.shape[1] - 1) / 2;
    auto column = [&](const Query& at, int64_t j) {
      return std::clamp(at.keys.position(j) - at.position, -clip, clip) + clip;
    };
    auto score = [&](const Query& at, int64_t j) {
      return scale_of(o_.scale, q.shape[3]) * dot(q, at, j) + (bias.data ? element(bias, {at.h, column(at, j)}) : 0);
    };
    softmax_over(in, out, o_.causal, score, [&](const Query& at, int64_t j, int64_t c) {
      return element(multiplier, {at.h, column(at, j)}) * at.keys.v(j, c);
    });
  }

 private:
  UrpeOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_urpe_reference(const UrpeOptions& options) {
  return std::make_unique<UrpeReference>(options);
}

}  // namespace attend
