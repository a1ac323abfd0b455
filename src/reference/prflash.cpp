#include "attend/reference/prflash.h"

#include "reference/gradients.h"

namespace attend {
namespace {

using namespace reference;

uint32_t mixed(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352d;
  x ^= x >> 15;
  x *= 0x846ca68b;
  x ^= x >> 16;
  return x;
}

uint32_t draw(uint64_t seed, uint32_t query_block, uint32_t key_block) {
  const uint32_t low = static_cast<uint32_t>(seed), high = static_cast<uint32_t>(seed / 4294967296);
  const uint32_t row = mixed(mixed(mixed(low)) + query_block) + high;
  return mixed(row + 0x9e3779b9 * key_block);
}

class PrFlashReference : public Operator {
 public:
  explicit PrFlashReference(const PrFlashOptions& options) : o_(options) {}

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
    const View &q = required(in, "q"), probability = optional(in, "probability");
    const int64_t own = at.position / o_.block, other = at.keys.position(j) / o_.block, n = own - other;
    const double p = probability.data ? element(probability, {std::min(n, probability.shape[0] - 1)})
                                      : std::pow(1 + static_cast<double>(n), -o_.power);
    const double drawn = draw(static_cast<uint64_t>(o_.seed), static_cast<uint32_t>(own), static_cast<uint32_t>(other));
    if (n > 0 && drawn >= 4294967296.0 * p) return -std::numeric_limits<double>::infinity();
    return scale_of(o_.scale, q.shape[3]) * dot(q, at, j);
  }

  PrFlashOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_prflash_reference(const PrFlashOptions& options) {
  return std::make_unique<PrFlashReference>(options);
}

}  // namespace attend
