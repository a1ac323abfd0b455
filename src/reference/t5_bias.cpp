#include "attend/reference/t5_bias.h"

#include "reference/gradients.h"

namespace attend {
namespace {

using namespace reference;

class T5BiasReference : public Operator {
 public:
  explicit T5BiasReference(const T5BiasOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    return attention_outputs(in);
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    softmax_over(in, out, o_.causal, [&](const Query& at, int64_t j) { return score(in, at, j); });
  }

  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override {
    const View &table = required(in, "table"), d_table = optional(grad_in, "table");
    clear(d_table);
    dot_softmax_backward(
        in, grad_out, grad_in, o_.causal, o_.scale, [&](const Query& at, int64_t j) { return score(in, at, j); },
        [&](const Query& at, int64_t j, double d) {
          add(d_table, {bucket(at.keys.position(j) - at.position, table.shape[0]), at.h}, d);
        });
  }

 private:
  double score(const Tensors& in, const Query& at, int64_t j) const {
    const View &q = required(in, "q"), &table = required(in, "table");
    const int64_t place = bucket(at.keys.position(j) - at.position, table.shape[0]);
    return scale_of(o_.scale, q.shape[3]) * dot(q, at, j) + element(table, {place, at.h});
  }

  int64_t bucket(int64_t relative, int64_t buckets) const {
    int64_t first = 0, distance = -relative;
    if (!o_.causal) {
      buckets /= 2;
      if (relative > 0) first = buckets, distance = relative;
    } else if (relative > 0) {
      distance = 0;
    }
    if (distance >= o_.max_distance || buckets == 1) return first + buckets - 1;
    const int64_t single = buckets / 2;
    if (distance < single) return first + distance;
    const double far = std::log(static_cast<double>(distance) / static_cast<double>(single)) /
                       std::log(static_cast<double>(o_.max_distance) / static_cast<double>(single));
    const int64_t place = single + static_cast<int64_t>(far * static_cast<double>(buckets - single));
    return first + std::min(place, buckets - 1);
  }

  T5BiasOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_t5_bias_reference(const T5BiasOptions& options) {
  return std::make_unique<T5BiasReference>(options);
}

}  // namespace attend
