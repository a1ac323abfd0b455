#include "attend/reference/kerple.h"

#include "reference/softmax_over.h"

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
    const View &q = required(in, "q"), amounts = optional(in, "amount"), rates = optional(in, "rate");
    softmax_over(in, out, o_.causal, [&](const Query& at, int64_t j) {
      const double distance = std::abs(static_cast<double>(at.position - at.keys.position(j)));
      const double amount = amounts.data ? element(amounts, {at.h}) : slope(at.h, q.shape[1]);
      const double rate = rates.data ? element(rates, {at.h}) : 1;
      double fall = 0;
      if (o_.log) {
        fall = std::log(1 + rate * distance);
      } else if (distance > 0) {
        fall = std::pow(distance, rate);
      }
      return scale_of(o_.scale, q.shape[3]) * dot(q, at, j) - amount * fall;
    });
  }

 private:
  KerpleOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_kerple_reference(const KerpleOptions& options) {
  return std::make_unique<KerpleReference>(options);
}

}  // namespace attend
