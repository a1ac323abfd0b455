// The registry's entry for relu.
#include "attend/exact/relu.h"
#include "attend/reference/relu.h"
#include "exact/score_entries.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {option::kCausal, option::kScale};
constexpr Port kIn[] = {port::kQ, port::kK, port::kV, port::kKvLens, port::kQPositions, port::kBias};
constexpr Port kOut[] = {port::kOut};
constexpr Paper kPapers[] = {{"Replacing softmax with ReLU in Vision Transformers", "2309.08586", ""}};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"};

ReluOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"), .scale = spec.real("scale")};
}

double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  if (output != "out") return std::numeric_limits<double>::quiet_NaN();
  const bound::SoftmaxNorms n = softmax_norms(spec, in);
  // n weights of at most score / n.
  const double score = n.scale * n.query * n.key + n.bias;
  return n.value * (bound::softmax_score(n) + score * (exact::sum_error(n.keys) + 4 * bound::kEpsilon)) + 1e-37;
}

constexpr Entry kRelu = {
    .kind = Kind::kMechanism,
    .name = "relu",
    .room = "exact",
    .equation = "o[i] = sum over visible j of max(0, scale * q[i].k[j]) / n v[j],  n: keys that query i sees",
    .summary = "attention whose keys are weighted by the positive part of their scores",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input", .forms = kForms, .patterns = kPatterns, .same_bits = SameBits::kAny},
    .notes = "n is the number of keys that the query sees, where the paper takes the length of the text. Forward only.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "relu", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors&, const AttnOut& out, Context& context) {
            relu_attention(qkv, o, out.out, context);
          });
    },
    .reference = [](const Spec& spec) { return make_relu_reference(options_from(spec)); },
    .bound = error_bound,
    .cascade =
        "s[i,j] = q[i,d] * k[j,d]\n"
        "o[i,c] = sum_j max(s[i,j], 0) / n[i] * v[j,c]",
    .passes = 1,
};

}  // namespace

void register_relu(Registry& registry) {
  registry.add(kRelu);
}

}  // namespace attend
