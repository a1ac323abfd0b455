#include "attend/reference/cope.h"

#include "reference/softmax_over.h"

namespace attend {
namespace {

using namespace reference;

class CopeReference : public Operator {
 public:
  explicit CopeReference(const CopeOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    return attention_outputs(in);
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const View &q = required(in, "q"), &embeddings = required(in, "embeddings");
    const double scale = scale_of(o_.scale, q.shape[3]);
    auto at_integer = [&](const Query& at, int64_t p) {
      double sum = 0;
      for (int64_t c = 0; c < q.shape[3]; ++c) sum += element(q, {at.b, at.h, at.i, c}) * element(embeddings, {p, c});
      return sum;
    };
    std::vector<double> count;  // p[i, j] of the query at hand
    softmax_over(in, out, true, [&](const Query& at, int64_t j) {
      if (j == 0) {
        count.assign(static_cast<size_t>(std::max<int64_t>(0, at.position + 1)), 0);
        double sum = 0;
        for (int64_t t = at.position; t >= 0; --t)
          count[static_cast<size_t>(t)] = sum += 1 / (1 + std::exp(-scale * dot(q, at, t)));
      }
      const double p = std::min(count[static_cast<size_t>(j)], static_cast<double>(embeddings.shape[0] - 1));
      const double below = std::floor(p), above = std::ceil(p);
      const double z = at_integer(at, static_cast<int64_t>(above)) * (p - below) +
                       at_integer(at, static_cast<int64_t>(below)) * (1 - (p - below));
      return scale * (dot(q, at, j) + z);
    });
  }

 private:
  CopeOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_cope_reference(const CopeOptions& options) {
  return std::make_unique<CopeReference>(options);
}

}  // namespace attend
