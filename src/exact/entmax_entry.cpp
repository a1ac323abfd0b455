// The registry's entry for entmax.
#include "attend/exact/entmax.h"
#include "attend/reference/entmax.h"
#include "exact/score_entries.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {option::kCausal,
                               option::kScale,
                               {"alpha", "", "towards 1: softmax; 2: sparsemax", "1.5", OptionType::kReal, 1.05, 2}};
constexpr Port kIn[] = {port::kQ, port::kK, port::kV, port::kKvLens, port::kQPositions, port::kBias};
constexpr Port kOut[] = {port::kOut};
constexpr Paper kPapers[] = {
    {"From Softmax to Sparsemax: A Sparse Model of Attention and Multi-Label Classification", "1602.02068", ""},
    {"Sparse Sequence-to-Sequence Models", "1905.05702", ""}};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"};

EntmaxOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"), .scale = spec.real("scale"), .alpha = spec.real("alpha")};
}

double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  if (output != "out") return std::numeric_limits<double>::quiet_NaN();
  const bound::SoftmaxNorms n = softmax_norms(spec, in);
  // The threshold moves at most as far as a score, and a weight at most by x^(p - 1) <= 1 times both.
  const double weight = 2 * (bound::softmax_score(n) + bound::kEpsilon);
  return n.value * (static_cast<double>(n.keys) * weight + bound::gamma(n.keys + 2)) + 1e-37;
}

constexpr Entry kEntmax = {
    .kind = Kind::kMechanism,
    .name = "entmax",
    .room = "exact",
    .equation =
        "o[i] = sum over visible j of w[j] v[j],  w[j] = max(0, (alpha - 1) s[j] - t)^(1 / (alpha - 1)) with sum 1,  s "
        "= scale * q[i].k[j]",
    .summary = "attention with exact zeros: entmax and, at alpha 2, sparsemax",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input", .forms = kForms, .patterns = kPatterns, .same_bits = SameBits::kAny},
    .notes = "The threshold comes from Newton's method in double. Forward only.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "entmax", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors&, const AttnOut& out, Context& context) {
            entmax_attention(qkv, o, out.out, context);
          });
    },
    .reference = [](const Spec& spec) { return make_entmax_reference(options_from(spec)); },
    .bound = error_bound,
};

}  // namespace

void register_entmax(Registry& registry) {
  registry.add(kEntmax);
}

}  // namespace attend
