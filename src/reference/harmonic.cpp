#include "attend/reference/harmonic.h"

#include "reference/rope_pairs.h"
#include "reference/softmax_over.h"

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
    const View &q = required(in, "q"), &k = required(in, "k"), slopes = optional(in, "slopes");
    const int64_t d = q.shape[3];
    const Rope rope(o_.rope, d, k.shape[2]);
    softmax_over(in, out, o_.causal, [&](const Query& at, int64_t j) {
      const int64_t key = at.keys.position(j), distance = std::abs(at.position - key);
      const std::vector<double> x = rope.rotated(d, static_cast<double>(at.position), [&](int64_t c) {
        return element(q, {at.b, at.h, at.i, c});
      });
      const std::vector<double> y =
          rope.rotated(d, static_cast<double>(key), [&](int64_t c) { return at.keys.k(j, c); });
      double s = 0;
      for (size_t c = 0; c < x.size(); ++c) s += x[c] * y[c];
      s *= scale_of(o_.scale, d);
      const double slope = slopes.data ? element(slopes, {at.h}) : 1;
      if (!o_.added) return s / (1 + slope * static_cast<double>(distance));
      double series = 0;
      for (int64_t n = 1; n <= distance; ++n) series += 1 / static_cast<double>(n);
      return s - slope * series;
    });
  }

 private:
  HarmonicOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_harmonic_reference(const HarmonicOptions& options) {
  return std::make_unique<HarmonicReference>(options);
}

}  // namespace attend
