#include "attend/exact/attention_operator.h"
#include "attend/exact/kerple.h"
#include "attend/reference/kerple.h"
#include "exact/cascades.h"
#include "exact/entries.h"
#include "exact/score_bound.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {
    option::kCausal,
    option::kScale,
    {"log", "", "the logarithm of the distance instead of a power of it", "false", OptionType::kFlag, 0, 0},
};
constexpr Port kIn[] = {
    port::kQ,
    port::kK,
    port::kV,
    port::kKvLens,
    port::kQPositions,
    {"amount", "Hq", "f32", false, "factor on what a distance takes off; absent: ALiBi's slopes", 0.01, 1},
    {"rate", "Hq", "f32", false, "power of the distance, or its factor inside the logarithm; absent: 1", 0.1, 2},
};
constexpr Port kOut[] = {port::kOut, port::kLse};
constexpr Paper kPapers[] = {
    {"KERPLE: Kernelized Relative Positional Embedding for Length Extrapolation", "2205.09921", ""},
    {"Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation", "2108.12409", ""},
};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"},
                           kGradients[] = {"q", "k", "v", "amount", "rate"};

KerpleOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"), .scale = spec.real("scale"), .log = spec.flag("log")};
}

class Kerple : public AttentionOperator {
 public:
  explicit Kerple(const KerpleOptions& options) : AttentionOperator("kerple", kIn, kOut), options_(options) {}

  void backward(const Tensors& in, const Tensors& out, const Tensors& grad_out, const Tensors& grad_in,
                Context& context) const override {
    const KerpleGrad gradients{{array(grad_in, "q"), array(grad_in, "k"), array(grad_in, "v")},
                               array(grad_in, "amount"),
                               array(grad_in, "rate")};
    kerple_attention_backward(inputs(in, 0), {array(in, "amount"), array(in, "rate")}, options_,
                              {array(out, "out"), array(out, "lse")}, {array(grad_out, "out"), array(grad_out, "lse")},
                              gradients, context);
  }

 protected:
  void attend(const Qkv& qkv, const Tensors& in, const AttnOut& out, Context& context) const override {
    kerple_attention(qkv, {array(in, "amount"), array(in, "rate")}, options_, out, context);
  }

 private:
  KerpleOptions options_;
};

// What falls more than twice the largest dot product and 104 below the nearest key has a weight of 0 in f32, so that
// errors of larger falls don't count.
double kerple_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  const bound::SoftmaxNorms norms = softmax_norms(spec, in);
  const View amounts = array(in, "amount", "bound"), rates = array(in, "rate", "bound");
  const double amount = amounts.data ? exact::largest(amounts) : 1, rate = rates.data ? exact::largest(rates) : 1;
  double rate_least = rate;
  for (int64_t h = 0; rates.data && h < rates.count(); ++h) rate_least = std::min(rate_least, value_at(rates, h));
  auto fall = [&](double d) {
    if (spec.flag("log")) return amount * std::log(1 + rate * d);
    return d < 1 ? 0 : amount * std::pow(d, rate);
  };
  const exact::Reach reach = exact::reach_of(in, spec.flag("causal"));
  const double counted =
      std::min(fall(reach.farthest), fall(reach.nearest) + 2 * norms.scale * norms.query * norms.key + 104);
  const bound::SoftmaxNorms scores = exact::with_scores(norms, counted, bound::kEpsilon * (2 * amount + 12 * counted));
  // Derivatives of a fall grow with distance.
  const double d = reach.farthest;
  if (output == "grad amount") {
    const double slope = spec.flag("log") ? std::log(1 + rate * d) : d < 1 ? 0 : std::pow(d, rate);
    return exact::parameter_gradient(scores, in, slope, 16 * bound::kEpsilon);
  }
  if (output == "grad rate") {
    const double slope = spec.flag("log") ? d / (1 + rate_least * d) : std::pow(d, rate) * std::log(std::max(1.0, d));
    return exact::parameter_gradient(scores, in, amount * slope, 24 * bound::kEpsilon);
  }
  return softmax_bound(scores, in, output);
}

constexpr Entry kEntry = {
    .kind = Kind::kMechanism,
    .name = "kerple",
    .room = "exact",
    .equation =
        "w[i,.] = softmax over visible j of scale * q[i].k[j] - fall(|i - j|)\n"
        "fall(d) = amount[h] d^rate[h], or amount[h] ln(1 + rate[h] d);  without both ports: ALiBi, 2^(-8 (h + 1) / "
        "Hq) d",
    .summary = "scores fall with a power (ALiBi: the first) or the logarithm of distance",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny,
               .gradients = kGradients},
    .notes = "ALiBi where neither amount nor rate is given. No position encoding at all is the mechanism softmax.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> { return std::make_unique<Kerple>(options_from(spec)); },
    .reference = [](const Spec& spec) { return make_kerple_reference(options_from(spec)); },
    .bound = kerple_bound,
    .cascade = "s[i,j] = q[i,d] * k[j,d] - fall[i,j]\n" ATTEND_CASCADE_OF_SCORES,
    .passes = 1,
};

}  // namespace

void register_kerple(Registry& registry) {
  registry.add(kEntry);
}

}  // namespace attend
