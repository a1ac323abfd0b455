#include "attend/reference/sentinel.h"

#include "reference/gradients.h"

namespace attend {
namespace {

using namespace reference;

class SentinelReference : public Operator {
 public:
  explicit SentinelReference(const SentinelOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    return attention_outputs(in);
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    softmax_over(in, out, true, [&](const Query& at, int64_t j) { return score(in, at, j); });
  }

  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override {
    dot_softmax_backward(
        in, grad_out, grad_in, true, o_.scale, [&](const Query& at, int64_t j) { return score(in, at, j); },
        [](const Query&, int64_t, double) {});
  }

 private:
  double score(const Tensors& in, const Query& at, int64_t j) const {
    const View &q = required(in, "q"), &spans = required(in, "spans");
    const double span = element(spans, {at.b, at.keys.position(j)});
    bool closed = false;  // all sentinels of its span, and there are some, stand before the query
    if (span > 0) {
      for (int64_t p = 0; p < spans.shape[1]; ++p)
        if (element(spans, {at.b, p}) == -span) closed = p < at.position;
    }
    if (closed) return -std::numeric_limits<double>::infinity();
    return scale_of(o_.scale, q.shape[3]) * dot(q, at, j);
  }

  SentinelOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_sentinel_reference(const SentinelOptions& options) {
  return std::make_unique<SentinelReference>(options);
}

}  // namespace attend
