#include "attend/exact/urpe.h"
#include "attend/reference/urpe.h"
#include "exact/entries.h"
#include "exact/function_operator.h"
#include "exact/score_bound.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {option::kCausal, option::kScale};
constexpr Port kIn[] = {
    port::kQ,
    port::kK,
    port::kV,
    port::kKvLens,
    port::kQPositions,
    {"multiplier", "Hq P", "f32", true, "of weights, for each distance -K..K; beyond K the last counts"},
    {"distance_bias", "Hq P", "f32", false, "of scores, for each distance"},
};
constexpr Port kOut[] = {port::kOut, port::kLse};
constexpr Paper kPapers[] = {
    {"Your Transformer May Not be as Powerful as You Expect", "2205.13401", "036"},
};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"};

UrpeOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"), .scale = spec.real("scale")};
}

constexpr Entry kEntry = {
    .kind = Kind::kMechanism,
    .name = "urpe",
    .room = "exact",
    .equation =
        "o[i] = sum_j w[i,j] multiplier[h,r] v[j],  w[i,.] = softmax over visible j of scale * q[i].k[j] + bias[h,r]\n"
        "r = clip(j - i, -K, K)",
    .summary = "a Toeplitz multiplier on the softmax weights, fused",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input", .forms = kForms, .patterns = kPatterns, .same_bits = SameBits::kAny},
    .notes = "",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "urpe", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors& in, const AttnOut& out, Context& context) {
            urpe_attention(qkv, array(in, "multiplier", "urpe"), array(in, "distance_bias", "urpe"), o, out, context);
          });
    },
    .reference = [](const Spec& spec) { return make_urpe_reference(options_from(spec)); },
    .bound =
        [](const Spec& spec, const Tensors& in, std::string_view output) {
          // A multiplier scales the values that a row sums, and rounds each weight once more.
          bound::SoftmaxNorms norms = softmax_norms(spec, in);
          norms.value *= exact::largest(array(in, "multiplier", "bound"));
          const double bias = exact::largest(array(in, "distance_bias", "bound"));
          return exact::scored(norms, bias, bound::kEpsilon, output);
        },
    .axis = [](std::string_view name, const Spec&, const Sizes& sizes) -> int64_t {
      return name == "P" ? sizes.tk / 3 * 2 + 1 : -1;
    },
    .cascade =
        "s[i,j] = q[i,d] * k[j,d] + bias[i,j]\n"
        "m[i] = max_j s[i,j]\n"
        "p[i,j] = exp(s[i,j] - m[i])\n"
        "z[i] = sum_j p[i,j]\n"
        "o[i,c] = sum_j p[i,j] / z[i] * multiplier[i,j] * v[j,c]",
    .passes = 1,
};

}  // namespace

void register_urpe(Registry& registry) {
  registry.add(kEntry);
}

}  // namespace attend
