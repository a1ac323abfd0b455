#include "attend/reference/rope.h"

#include <optional>

#include "reference/rope_pairs.h"
#include "reference/softmax_over.h"

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
    const View &q = required(in, "q"), &k = required(in, "k"), bases = optional(in, "bases");
    const int64_t d = q.shape[3];
    std::vector<double> query;
    std::vector<std::vector<double>> keys;  // of the batch entry and head at hand, rotated
    std::optional<Rope> rope;
    int64_t batch = -1, head = -1, row = -1;
    softmax_over(in, out, causal_, [&](const Query& at, int64_t j) {
      RopeOptions options = o_;
      if (bases.data) options.base = element(bases, {at.b});
      if (batch != at.b)
        rope.emplace(options, d, k.shape[2], optional(in, "short_factors"), optional(in, "long_factors"));
      if (batch != at.b || head != at.keys.head) {
        keys.clear();
        for (int64_t t = 0; t < at.keys.count; ++t)
          keys.push_back(rope->rotated(d, static_cast<double>(t), [&](int64_t c) { return at.keys.k(t, c); }));
      }
      if (const int64_t now = (at.b * q.shape[1] + at.h) * q.shape[2] + at.i; row != now) {
        query = rope->rotated(d, static_cast<double>(at.position), [&](int64_t c) {
          return element(q, {at.b, at.h, at.i, c});
        });
        row = now;
      }
      batch = at.b;
      head = at.keys.head;
      double sum = 0;
      for (size_t c = 0; c < query.size(); ++c) sum += query[c] * keys[static_cast<size_t>(j)][c];
      return scale_of(scale_, d) * sum;
    });
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
