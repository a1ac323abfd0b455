// The registry's entry for softmax1.
#include "attend/exact/softmax1.h"
#include "attend/reference/softmax1.h"
#include "exact/score_entries.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {option::kCausal, option::kScale};
constexpr Port kIn[] = {port::kQ, port::kK, port::kV, port::kKvLens, port::kQPositions, port::kBias};
constexpr Port kOut[] = {port::kOut};
constexpr Paper kPapers[] = {
    {"Affine-Scaled Attention: Towards Flexible and Stable Transformer Attention", "2602.23057", ""}};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"};

Softmax1Options options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"), .scale = spec.real("scale")};
}

double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  return softmax_bound(spec, in, output);
}

constexpr Entry kSoftmax1 = {
    .kind = Kind::kMechanism,
    .name = "softmax1",
    .room = "exact",
    .equation = "o[i] = sum over visible j of exp(s[i,j]) v[j] / (1 + sum of exp(s[i,.])),  s = scale * q[i].k[j]",
    .summary = "softmax attention with 1 more in the denominator",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input", .forms = kForms, .patterns = kPatterns, .same_bits = SameBits::kAny},
    .notes = "Softmax-off-by-one (Miller 2023), equation 2 of the paper named here: a sink logit of 0. Forward only.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "softmax1", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors&, const AttnOut& out, Context& context) {
            softmax1_attention(qkv, o, out, context);
          });
    },
    .reference = [](const Spec& spec) { return make_softmax1_reference(options_from(spec)); },
    .bound = error_bound,
};

}  // namespace

void register_softmax1(Registry& registry) {
  registry.add(kSoftmax1);
}

}  // namespace attend
