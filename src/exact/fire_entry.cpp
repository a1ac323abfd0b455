#include <algorithm>
#include <cmath>

#include "attend/exact/attention_operator.h"
#include "attend/exact/fire.h"
#include "attend/reference/fire.h"
#include "exact/cascades.h"
#include "exact/entries.h"
#include "exact/score_bound.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {
    option::kCausal,
    option::kScale,
    {"rate", "per token", "c of ln(1 + c d)", "0.1", OptionType::kReal, 1e-3, 1e9},
    {"threshold", "tokens", "queries before it are interpolated as if they stood on it", "512", OptionType::kReal, 1,
     1e9},
};
constexpr Port kIn[] = {
    port::kQ,
    port::kK,
    port::kV,
    port::kKvLens,
    port::kQPositions,
    {"inner_weight", "Units", "f32", true, "of the hidden layer"},
    {"inner_bias", "Units", "f32", true, "of the hidden layer"},
    {"weight", "Hq Units", "f32", true, "of each head's output"},
    {"outer_bias", "Hq", "f32", false, "of each head's output"},
};
constexpr Port kOut[] = {port::kOut, port::kLse};
constexpr Paper kPapers[] = {
    {"Functional Interpolation for Relative Positions Improves Long Context Transformers", "2310.04418", ""},
};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"},
                           kGradients[] = {"q", "k", "v", "inner_weight", "inner_bias", "weight", "outer_bias"};

FireOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"),
          .scale = spec.real("scale"),
          .rate = spec.real("rate"),
          .threshold = spec.real("threshold")};
}

class Fire : public AttentionOperator {
 public:
  explicit Fire(const FireOptions& options) : AttentionOperator("fire", kIn, kOut), options_(options) {}

  void backward(const Tensors& in, const Tensors& out, const Tensors& grad_out, const Tensors& grad_in,
                Context& context) const override {
    const FireNetwork to = network(grad_in);
    const FireGrad gradients{{array(grad_in, "q"), array(grad_in, "k"), array(grad_in, "v")},
                             to.inner_weight,
                             to.inner_bias,
                             to.weight,
                             to.outer_bias};
    fire_attention_backward(inputs(in, 0), network(in), options_, {array(out, "out"), array(out, "lse")},
                            {array(grad_out, "out"), array(grad_out, "lse")}, gradients, context);
  }

 protected:
  void attend(const Qkv& qkv, const Tensors& in, const AttnOut& out, Context& context) const override {
    fire_attention(qkv, network(in), options_, out, context);
  }

 private:
  FireNetwork network(const Tensors& in) const {
    return {array(in, "inner_weight"), array(in, "inner_bias"), array(in, "weight"), array(in, "outer_bias")};
  }

  FireOptions options_;
};

// Whether some pair's distance brings a hidden unit so close to 0 that rounding may switch it; `x_error` is that of an
// interpolated distance.
bool may_switch(const Spec& spec, const Tensors& in, double x_error) {
  const View q = array(in, "q", "bound"), k = array(in, "k", "bound"), positions = array(in, "q_positions", "bound"),
             a = array(in, "inner_weight", "bound"), b = array(in, "inner_bias", "bound");
  const double c = spec.real("rate"), threshold = spec.real("threshold");
  const int64_t queries = q.shape[2], keys = k.shape[2];
  for (int64_t row = 0; row < (positions.data ? positions.count() : queries); ++row) {
    const double i = positions.data ? value_at(positions, row) : static_cast<double>(row + keys - queries);
    for (int64_t j = 0; j < keys; ++j) {
      const double x =
          std::log(1 + c * std::abs(i - static_cast<double>(j))) / std::log(1 + c * std::max(threshold, i));
      for (int64_t u = 0; u < a.shape[0]; ++u) {
        const double slope = std::abs(value_at(a, u)), bias = value_at(b, u);
        if (std::abs(value_at(a, u) * x + bias) <= slope * x_error + 2 * bound::kEpsilon * (slope * x + std::abs(bias)))
          return true;
      }
    }
  }
  return false;
}

// The network's slope times the error of x (that of both logarithms and the division), and its own U + 3 roundings.
double fire_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  const View a = array(in, "inner_weight", "bound"), b = array(in, "inner_bias", "bound"),
             w = array(in, "weight", "bound"), outer = array(in, "outer_bias", "bound");
  const double c = spec.real("rate"), farthest = exact::reach_of(in, spec.flag("causal")).farthest;
  const double numerator = std::log(1 + c * farthest), denominator = std::log(1 + c * spec.real("threshold"));
  const double x = numerator / denominator;
  const double x_error =
      bound::kEpsilon * ((2 + 5 * numerator) / denominator + x * (2 + 5 * denominator) / denominator + 2 * x);
  double slope = 0, magnitude = exact::largest(outer), hidden = 0;
  const int64_t units = a.shape[0];
  for (int64_t u = 0; u < units; ++u) {
    double largest = 0;
    for (int64_t h = 0; h < w.shape[0]; ++h) largest = std::max(largest, std::abs(value_at(w, h * units + u)));
    slope += largest * std::abs(value_at(a, u));
    const double most = std::abs(value_at(a, u)) * x + std::abs(value_at(b, u));
    magnitude += largest * most;
    hidden = std::max(hidden, most);
  }
  const bound::SoftmaxNorms scores =
      exact::with_scores(softmax_norms(spec, in), magnitude, slope * x_error + bound::gamma(units + 3) * magnitude);
  const double sums = 8 * bound::kEpsilon;  // of four products a lane; all else is added up in f64
  if (output == "grad outer_bias") return exact::parameter_gradient(scores, in, 1, sums);
  if (output == "grad weight") {
    const double moved = exact::largest(a) * x_error + 2 * bound::kEpsilon * hidden;
    return exact::parameter_gradient(scores, in, hidden, sums + (hidden > 0 ? moved / hidden : 0));
  }
  if (output == "grad inner_weight" || output == "grad inner_bias") {
    const double most = output == "grad inner_weight" ? x : 1;
    // All heads share the hidden layer.
    return exact::parameter_gradient(scores, in, static_cast<double>(w.shape[0]) * exact::largest(w) * most,
                                     sums + (x > 0 ? x_error / x : 0) + (may_switch(spec, in, x_error) ? 1 : 0));
  }
  return softmax_bound(scores, in, output);
}

constexpr Entry kEntry = {
    .kind = Kind::kMechanism,
    .name = "fire",
    .room = "exact",
    .equation =
        "w[i,.] = softmax over visible j of scale * q[i].k[j] + f[h](phi(|i - j|) / phi(max(threshold, i)))\n"
        "phi(d) = ln(1 + rate d),  f[h](x) = sum_u weight[h,u] relu(inner_weight[u] x + inner_bias[u])",
    .summary = "a small network maps interpolated distances to biases",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny,
               .gradients = kGradients},
    .notes = "Rate and threshold are learned in the paper: options here.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> { return std::make_unique<Fire>(options_from(spec)); },
    .reference = [](const Spec& spec) { return make_fire_reference(options_from(spec)); },
    .bound = fire_bound,
    .axis = [](std::string_view name, const Spec&, const Sizes&) -> int64_t { return name == "Units" ? 32 : -1; },
    .cascade = "s[i,j] = q[i,d] * k[j,d] + f[i,j]\n" ATTEND_CASCADE_OF_SCORES,
    .passes = 1,
};

}  // namespace

void register_fire(Registry& registry) {
  registry.add(kEntry);
}

}  // namespace attend
