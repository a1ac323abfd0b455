#include "attend/exact/sentinel.h"
#include "attend/reference/sentinel.h"
#include "exact/cascades.h"
#include "exact/score_entries.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {option::kScale};
constexpr Port kIn[] = {
    port::kQ,
    port::kK,
    port::kV,
    port::kKvLens,
    port::kQPositions,
    {"spans", "B T", "i32", true, "of each position: s > 0 in span s, -s a sentinel of it, 0 neither", -4, 4},
};
constexpr Port kOut[] = {port::kOut, port::kLse};
constexpr Paper kPapers[] = {
    {"Context Compression for Auto-regressive Transformers with Sentinel Tokens", "2310.08152", "089"},
};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"causal", "self", "cross", "grouped"},
                           kGradients[] = {"q", "k", "v"};

SentinelOptions options_from(const Spec& spec) {
  return {.scale = spec.real("scale")};
}

constexpr Entry kEntry = {
    .kind = Kind::kMechanism,
    .name = "sentinel",
    .room = "exact",
    .equation =
        "w[i,.] = softmax over visible j of scale * q[i].k[j]\n"
        "j visible to i  <=>  j <= i and not (spans[j] = s > 0 and i is after the last sentinel of s)",
    .summary = "spans that later tokens see through their sentinel tokens alone",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny,
               .gradients = kGradients},
    .notes =
        "The mechanism and its mask; models whose sentinels were trained to hold a span are not at hand. Blocks of "
        "64 x 64 that nobody sees are skipped.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "sentinel", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors& in, const AttnOut& out, Context& context) {
            sentinel_attention(qkv, array(in, "spans", "sentinel"), o, out, context);
          },
          [o = options_from(spec)](const Qkv& qkv, const Tensors& in, const AttnOut& forward,
                                   const AttnOutGrad& grad_out, const Tensors& grad_in, Context& context) {
            auto to = [&](std::string_view name) { return array(grad_in, name, "sentinel"); };
            sentinel_attention_backward(qkv, array(in, "spans", "sentinel"), o, forward, grad_out,
                                        {.q = to("q"), .k = to("k"), .v = to("v")}, context);
          });
    },
    .reference = [](const Spec& spec) { return make_sentinel_reference(options_from(spec)); },
    .bound = softmax_bound,
    .cascade = "s[i,j] = q[i,d] * k[j,d]\n" ATTEND_CASCADE_OF_SCORES,
    .passes = 1,
};

}  // namespace

void register_sentinel(Registry& registry) {
  registry.add(kEntry);
}

}  // namespace attend
