#include "attend/reference/rope.h"

#include <limits>

#include "reference/rotated.h"

namespace attend {
namespace {

using namespace reference;

class RopeReference : public Operator {
 public:
  explicit RopeReference(const RopeAttentionOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    return attention_outputs(in);
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    Rotated rotated(o_.rope, in);
    softmax_over(in, out, o_.causal, [&](const Query& at, int64_t j) { return score(rotated, at, j); });
  }

  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override {
    Rotated rotated(o_.rope, in);
    const double scale = scale_of(o_.scale, required(in, "q").shape[3]);
    rotated.backward(
        grad_out, grad_in, o_.causal, [&](const Query& at, int64_t j) { return score(rotated, at, j); },
        [&](const Query&, int64_t) { return scale; },
        [&](const Query& at, int64_t j) { return query_stands_at(at.position, j); });
  }

 private:
  double score(Rotated& rotated, const Query& at, int64_t j) const {
    const bool windowed = o_.window > 0;
    if (windowed && at.position - j >= o_.window && j >= o_.sinks) return -std::numeric_limits<double>::infinity();
    return scale_of(o_.scale, rotated.width()) * rotated.dot(at, j, query_stands_at(at.position, j));
  }

  // A text of which the sinks and the window are left counts as one of window + sinks tokens, the query its last.
  int64_t query_stands_at(int64_t position, int64_t j) const {
    if (o_.positions == RopePositions::kText || o_.window == 0 || j >= o_.sinks) return position;
    const bool dropped = position - o_.window >= o_.sinks;
    return dropped ? o_.window + o_.sinks - 1 : position;
  }

  RopeAttentionOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_rope_reference(const RopeAttentionOptions& options) {
  return std::make_unique<RopeReference>(options);
}

}  // namespace attend
