#include "attend/reference/kerple.h"

#include "reference/gradients.h"

namespace attend {
namespace {

using namespace reference;

// The authors' recursion: heads beyond a power of two get every other slope of twice that power.
double slope(int64_t head, int64_t heads) {
  int64_t power = 1;
  while (2 * power <= heads) power *= 2;
  if (power == heads) return std::pow(std::pow(2.0, -8.0 / static_cast<double>(heads)), static_cast<double>(head + 1));
  return head < power ? slope(head, power) : slope(2 * (head - power), 2 * power);
}

class KerpleReference : public Operator {
 public:
  explicit KerpleReference(const KerpleOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    return attention_outputs(in);
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    softmax_over(in, out, o_.causal, [&](const Query& at, int64_t j) { return score(in, at, j); });
  }

  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override {
    const View d_amount = optional(grad_in, "amount"), d_rate = optional(grad_in, "rate");
    for (const View& grad : {d_amount, d_rate}) clear(grad);
    dot_softmax_backward(
        in, grad_out, grad_in, o_.causal, o_.scale, [&](const Query& at, int64_t j) { return score(in, at, j); },
        [&](const Query& at, int64_t j, double d) {
          const Numbers n = numbers(in, at, j);
          add(d_amount, {at.h}, -d * fall(n));
          if (n.distance == 0) return;
          add(d_rate, {at.h},
              -d * n.amount *
                  (o_.log ? n.distance / (1 + n.rate * n.distance)
                          : std::pow(n.distance, n.rate) * std::log(n.distance)));
        });
  }

 private:
  struct Numbers {
    double distance, amount, rate;
  };
  static Numbers numbers(const Tensors& in, const Query& at, int64_t j) {
    const View amounts = optional(in, "amount"), rates = optional(in, "rate");
    return {std::abs(static_cast<double>(at.position - at.keys.position(j))),
            amounts.data ? element(amounts, {at.h}) : slope(at.h, required(in, "q").shape[1]),
            rates.data ? element(rates, {at.h}) : 1};
  }

  // Of an amount of 1.
  double fall(const Numbers& n) const {
    if (o_.log) return std::log(1 + n.rate * n.distance);
    return n.distance > 0 ? std::pow(n.distance, n.rate) : 0;
  }

  double score(const Tensors& in, const Query& at, int64_t j) const {
    const View& q = required(in, "q");
    const Numbers n = numbers(in, at, j);
    return scale_of(o_.scale, q.shape[3]) * dot(q, at, j) - n.amount * fall(n);
  }

  KerpleOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_kerple_reference(const KerpleOptions& options) {
  return std::make_unique<KerpleReference>(options);
}

}  // namespace attend
