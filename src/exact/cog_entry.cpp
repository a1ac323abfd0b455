// The registry's entry for cog.
#include "attend/exact/cog.h"
#include "attend/reference/cog.h"
#include "exact/score_entries.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {option::kCausal, option::kScale};
constexpr Port kIn[] = {port::kQ, port::kK, port::kV, port::kKvLens, port::kQPositions};
constexpr Port kOut[] = {port::kOut};
constexpr Paper kPapers[] = {{"More Expressive Attention with Negative Weights", "2411.07176", "075"}};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"};

CogOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"), .scale = spec.real("scale")};
}

double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  const bound::SoftmaxNorms n = softmax_norms(spec, in);
  if (output != "out") return std::numeric_limits<double>::quiet_NaN();
  // A score within its error of 0 may have either sign: its weight may be off by twice itself.
  const double near = bound::softmax_score(n);
  double flipped = 0;
  exact::each_bound_row(in, spec.flag("causal"), [&](const exact::BoundRow& row, int64_t) {
    double sum = 0, doubtful = 0;
    for (double dot : row.dots) {
      sum += std::exp(std::min(700.0, n.scale * std::abs(dot)));
      if (n.scale * std::abs(dot) <= near) doubtful += 2;
    }
    if (doubtful > 0) flipped = std::max(flipped, doubtful / sum);
  });
  return bound::softmax(n) + n.value * flipped;
}

constexpr Entry kCog = {
    .kind = Kind::kMechanism,
    .name = "cog",
    .room = "exact",
    .equation =
        "o[i] = sum over visible j of sign(s[i,j]) w[i,j] v[j],  w[i,.] = softmax over visible j of |s[i,j]|,  s = "
        "scale * q[i].k[j]",
    .summary = "attention with negative weights: a score gives its weight its sign",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input", .forms = kForms, .patterns = kPatterns, .same_bits = SameBits::kAny},
    .notes = "Forward only: 075 asks for a backward, too.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "cog", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors&, const AttnOut& out, Context& context) {
            cog_attention(qkv, o, out, context);
          });
    },
    .reference = [](const Spec& spec) { return make_cog_reference(options_from(spec)); },
    .bound = error_bound,
};

}  // namespace

void register_cog(Registry& registry) {
  registry.add(kCog);
}

}  // namespace attend
