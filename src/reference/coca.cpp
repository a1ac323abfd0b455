#include "attend/reference/coca.h"

#include "reference/rope_pairs.h"
#include "reference/softmax_over.h"

namespace attend {
namespace {

using namespace reference;

// As the paper says it: a key for every query, collinear with it, both rotated, their dot product.
class CocaReference : public Operator {
 public:
  explicit CocaReference(const CocaOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    return attention_outputs(in);
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const View& q = required(in, "q");
    const int64_t d = q.shape[3];
    const Rope rope({.base = o_.base, .interleaved = o_.interleaved}, d, 0);
    softmax_over(in, out, o_.causal, [&](const Query& at, int64_t j) {
      auto query = [&](int64_t c) { return element(q, {at.b, at.h, at.i, c}); };
      double sum = 0;
      for (int64_t p = 0; p < d / 2; ++p) {
        const double qa = query(rope.first(p)), qb = query(rope.second(p));
        const double gate = std::max(0.0, (at.keys.k(j, rope.first(p)) + at.keys.k(j, rope.second(p))) / 2);
        const double ka = gate * qa, kb = gate * qb;
        const double x = static_cast<double>(at.position) * rope.frequency[static_cast<size_t>(p)],
                     y = static_cast<double>(j) * rope.frequency[static_cast<size_t>(p)];
        sum += (qa * std::cos(x) - qb * std::sin(x)) * (ka * std::cos(y) - kb * std::sin(y)) +
               (qa * std::sin(x) + qb * std::cos(x)) * (ka * std::sin(y) + kb * std::cos(y));
      }
      return scale_of(o_.scale, d) * sum;
    });
  }

 private:
  CocaOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_coca_reference(const CocaOptions& options) {
  return std::make_unique<CocaReference>(options);
}

}  // namespace attend
