// The registry's entry for sigmoid.
#include "attend/exact/sigmoid.h"
#include "attend/reference/sigmoid.h"
#include "exact/score_entries.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {
    option::kCausal, option::kScale, {"bias", "", "added to -ln n", "0", OptionType::kReal, -1e4, 1e4}};
constexpr Port kIn[] = {port::kQ, port::kK, port::kV, port::kKvLens, port::kQPositions, port::kBias};
constexpr Port kOut[] = {port::kOut};
constexpr Paper kPapers[] = {{"Theory, Analysis, and Best Practices for Sigmoid Self-Attention", "2409.04431", ""}};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"};

SigmoidOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"), .scale = spec.real("scale"), .bias = spec.real("bias")};
}

double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  if (output != "out") return std::numeric_limits<double>::quiet_NaN();
  bound::SoftmaxNorms n = softmax_norms(spec, in);
  const double score = n.scale * n.query * n.key + n.bias, bias = spec.real("bias"),
               shift = std::abs(bias) + std::log(static_cast<double>(n.keys) + 1);
  // A weight is at most 1 and at most e^(score + bias) / n; its relative error is at most that of the score, with the
  // shift, and 8 epsilon.
  const double weights = std::min(static_cast<double>(n.keys), std::exp(std::min(700.0, score + bias)));
  const double relative = bound::softmax_score(n) + bound::kEpsilon * (score + 2 * shift + 12);
  return n.value * weights * (relative + exact::sum_error(n.keys)) + 1e-37;
}

constexpr Entry kSigmoid = {
    .kind = Kind::kMechanism,
    .name = "sigmoid",
    .room = "exact",
    .equation =
        "o[i] = sum over visible j of sigmoid(scale * q[i].k[j] + bias - ln n) v[j],  n: keys that query i sees",
    .summary = "attention whose keys are weighted one by one by a sigmoid",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input", .forms = kForms, .patterns = kPatterns, .same_bits = SameBits::kAny},
    .notes = "n is the number of keys that the query sees, where the paper takes the length of the text. Forward only.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "sigmoid", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors&, const AttnOut& out, Context& context) {
            sigmoid_attention(qkv, o, out.out, context);
          });
    },
    .reference = [](const Spec& spec) { return make_sigmoid_reference(options_from(spec)); },
    .bound = error_bound,
    .cascade =
        "s[i,j] = q[i,d] * k[j,d]\n"
        "o[i,c] = sum_j sigmoid(s[i,j] - n[i]) * v[j,c]",
    .passes = 1,
};

}  // namespace

void register_sigmoid(Registry& registry) {
  registry.add(kSigmoid);
}

}  // namespace attend
