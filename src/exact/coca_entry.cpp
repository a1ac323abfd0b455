#include <numbers>

#include "attend/exact/coca.h"
#include "attend/reference/coca.h"
#include "exact/cascades.h"
#include "exact/entries.h"
#include "exact/function_operator.h"
#include "exact/rope_spec.h"
#include "exact/score_bound.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {option::kCausal, option::kScale, exact::kBase, exact::kInterleaved};
constexpr Port kIn[] = {
    port::kQ,          {"k", "B Hkv Tk D", "f32 f16 bf16", true, "the projections t, unrotated, at positions 0, 1, .."},
    port::kV,          port::kKvLens,
    port::kQPositions,
};
constexpr Port kOut[] = {port::kOut, port::kLse};
constexpr Paper kPapers[] = {
    {"Cure the headache of Transformers via Collinear Constrained Attention", "2309.08646", "168"},
};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"},
                           kGradients[] = {"q", "k", "v"};

CocaOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"),
          .scale = spec.real("scale"),
          .base = spec.real("base"),
          .interleaved = spec.flag("interleaved")};
}

// The vectors that meet hold |q[p]|^2 and g[p] <= length of t[p] / sqrt 2, with 3 roundings more.
double coca_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  bound::SoftmaxNorms norms = softmax_norms(spec, in);
  norms.query *= norms.query;
  norms.key /= std::numbers::sqrt2;
  const double error = 1.3 * exact::rotary_error(norms);
  if (!output.starts_with("grad")) return exact::scored(norms, 0, error, output);
  const bound::SoftmaxNorms scores = exact::with_scores(norms, 0, error);
  const double limit = 1.3 * exact::rotary_gradient(scores, in, 1, output);
  if (output == "grad q") return 2 * exact::largest(array(in, "q", "bound")) * limit;
  return output == "grad k" ? limit / 2 : limit;
}

constexpr Entry kEntry = {
    .kind = Kind::kMechanism,
    .name = "coca",
    .room = "exact",
    .equation =
        "w[i,.] = softmax over visible j of scale * sum_p |q[i,p]|^2 g[j,p] cos((i - j) theta[p])\n"
        "g[j,p] = relu of the mean of t's pair p,  theta[p] = base^(-2p / D)",
    .summary = "keys collinear with the query in every rotary pair",
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
        "The paper's definition; its authors' code rotates t before multiplying it with q, which is not a function of "
        "i - j.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "coca", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors&, const AttnOut& out, Context& context) {
            coca_attention(qkv, o, out, context);
          },
          [o = options_from(spec)](const Qkv& qkv, const Tensors&, const AttnOut& forward, const AttnOutGrad& grad_out,
                                   const Tensors& grad_in, Context& context) {
            auto to = [&](std::string_view name) { return array(grad_in, name, "coca"); };
            coca_attention_backward(qkv, o, forward, grad_out, {.q = to("q"), .k = to("k"), .v = to("v")}, context);
          });
    },
    .reference = [](const Spec& spec) { return make_coca_reference(options_from(spec)); },
    .bound = coca_bound,
    .cascade =
        "x[i,d] = square(q[i,d])\n"
        "y[j,d] = turn(t[j,d])\n"
        "s[i,j] = x[i,d] * y[j,d]\n" ATTEND_CASCADE_OF_SCORES,
    .passes = 2,
    .refuses = [](const Spec&, const Sizes& sizes) { return exact::rope_refuses({}, sizes.d); },
};

}  // namespace

void register_coca(Registry& registry) {
  registry.add(kEntry);
}

}  // namespace attend
