#include "attend/reference/relative.h"

#include "reference/softmax_over.h"

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
    const View &q = required(in, "q"), &keys = required(in, "relative_keys"), values = optional(in, "relative_values"),
               content = optional(in, "content_bias"), position = optional(in, "position_bias"),
               bias = optional(in, "distance_bias");
    const int64_t rows = keys.shape[1], clip = o_.past ? rows - 1 : (rows - 1) / 2;
    auto row = [&](const Query& at, int64_t j) {
      return std::clamp(at.keys.position(j) - at.position, -clip, o_.past ? 0 : clip) + clip;
    };
    auto score = [&](const Query& at, int64_t j) {
      double sum = bias.data ? element(bias, {at.h, row(at, j)}) : 0;
      for (int64_t c = 0; c < q.shape[3]; ++c) {
        const double x = element(q, {at.b, at.h, at.i, c});
        sum += (x + (content.data ? element(content, {at.h, c}) : 0)) * at.keys.k(j, c);
        sum += (x + (position.data ? element(position, {at.h, c}) : 0)) * element(keys, {at.h, row(at, j), c});
      }
      return scale_of(o_.scale, q.shape[3]) * sum;
    };
    softmax_over(in, out, o_.causal, score, [&](const Query& at, int64_t j, int64_t c) {
      return at.keys.v(j, c) + (values.data ? element(values, {at.h, row(at, j), c}) : 0);
    });
  }

 private:
  RelativeOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_relative_reference(const RelativeOptions& options) {
  return std::make_unique<RelativeReference>(options);
}

}  // namespace attend
