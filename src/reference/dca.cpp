#include "attend/reference/dca.h"

#include "reference/rope_pairs.h"
#include "reference/softmax_over.h"

namespace attend {
namespace {

using namespace reference;

class DcaReference : public Operator {
 public:
  explicit DcaReference(const DcaOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    return attention_outputs(in);
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const View& q = required(in, "q");
    const int64_t d = q.shape[3], s = o_.chunk_tokens();
    const Rope rope(o_.rope, d, 0);
    // A pair's part of the score depends on the two positions through their difference alone.
    softmax_over(in, out, true, [&](const Query& at, int64_t j) {
      const int64_t i = at.position;
      int64_t x = o_.context - 1;
      if (i / s == j / s) x = i % s;
      if (i / s == j / s + 1) x = std::min(i % s + s, o_.context - 1);
      auto query = [&](int64_t c) { return element(q, {at.b, at.h, at.i, c}); };
      auto key = [&](int64_t c) { return at.keys.k(j, c); };
      double sum = 0;
      for (int64_t c = rope.dims; c < d; ++c) sum += query(c) * key(c);
      for (int64_t p = 0; p < rope.dims / 2; ++p) {
        const double angle = static_cast<double>(x - j % s) * rope.frequency[static_cast<size_t>(p)];
        const double qa = query(rope.first(p)), qb = query(rope.second(p)), ka = key(rope.first(p)),
                     kb = key(rope.second(p));
        const double same = qa * ka + qb * kb, crossed = qa * kb - qb * ka;
        sum += rope.magnitude() * rope.magnitude() * (same * std::cos(angle) + crossed * std::sin(angle));
      }
      return scale_of(o_.scale, d) * sum;
    });
  }

 private:
  DcaOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_dca_reference(const DcaOptions& options) {
  return std::make_unique<DcaReference>(options);
}

}  // namespace attend
