#include "attend/exact/fire.h"
#include "attend/reference/fire.h"
#include "exact/cascades.h"
#include "exact/entries.h"
#include "exact/function_operator.h"
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
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"};

FireOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"),
          .scale = spec.real("scale"),
          .rate = spec.real("rate"),
          .threshold = spec.real("threshold")};
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
  double slope = 0, magnitude = exact::largest(outer);
  const int64_t units = a.shape[0];
  for (int64_t u = 0; u < units; ++u) {
    double largest = 0;
    for (int64_t h = 0; h < w.shape[0]; ++h) largest = std::max(largest, std::abs(value_at(w, h * units + u)));
    slope += largest * std::abs(value_at(a, u));
    magnitude += largest * (std::abs(value_at(a, u)) * x + std::abs(value_at(b, u)));
  }
  return exact::scored(softmax_norms(spec, in), magnitude, slope * x_error + bound::gamma(units + 3) * magnitude,
                       output);
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
    .traits = {.exact_for = "every input", .forms = kForms, .patterns = kPatterns, .same_bits = SameBits::kAny},
    .notes = "Rate and threshold are learned in the paper: options here.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "fire", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors& in, const AttnOut& out, Context& context) {
            fire_attention(qkv,
                           {array(in, "inner_weight", "fire"), array(in, "inner_bias", "fire"),
                            array(in, "weight", "fire"), array(in, "outer_bias", "fire")},
                           o, out, context);
          });
    },
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
