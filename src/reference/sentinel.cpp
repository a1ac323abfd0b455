#include "attend/reference/sentinel.h"

#include "reference/softmax_over.h"

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
    const View &q = required(in, "q"), &spans = required(in, "spans");
    softmax_over(in, out, true, [&](const Query& at, int64_t j) {
      const double span = element(spans, {at.b, at.keys.position(j)});
      bool closed = false;  // all sentinels of its span, and there are some, stand before the query
      if (span > 0) {
        for (int64_t p = 0; p < spans.shape[1]; ++p)
          if (element(spans, {at.b, p}) == -span) closed = p < at.position;
      }
      if (closed) return -std::numeric_limits<double>::infinity();
      return scale_of(o_.scale, q.shape[3]) * dot(q, at, j);
    });
  }

 private:
  SentinelOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_sentinel_reference(const SentinelOptions& options) {
  return std::make_unique<SentinelReference>(options);
}

}  // namespace attend
