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
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"},
                           kGradients[] = {"q", "k", "v", "multiplier", "distance_bias"};

UrpeOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"), .scale = spec.real("scale")};
}

// A multiplier scales the values that a row sums, and rounds each weight once more.
double urpe_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  const View multiplier = array(in, "multiplier", "bound");
  const double most = exact::largest(multiplier), bias = exact::largest(array(in, "distance_bias", "bound"));
  bound::SoftmaxNorms norms = softmax_norms(spec, in);
  if (!output.starts_with("grad")) {
    norms.value *= most;
    return exact::scored(norms, bias, bound::kEpsilon, output);
  }
  bound::SoftmaxGradientNorms n = gradient_norms(exact::with_scores(norms, bias, bound::kEpsilon), in);
  const double value = n.value;
  n.value *= most;
  const View q = array(in, "q", "bound");
  const std::string_view port = output.substr(5);
  const int64_t rows = q.shape[0] * q.shape[2], shared = array(in, port, "bound").shape[0] == 1 ? q.shape[1] : 1,
                chain = norms.keys + rows + 8;
  const double own = static_cast<double>(n.rows), all = static_cast<double>(rows * shared);
  if (port == "q") return exact::rows_gradient(n, 1, norms.scale * n.k_max, chain);
  if (port == "k") return exact::rows_gradient(n, own, norms.scale * n.q_max, n.rows);
  if (port == "v") return exact::rows_weights(n, own, most * n.d_out, n.rows);
  if (port == "multiplier") return exact::rows_weights(n, all, n.d_out * value, chain + 2 * n.dv);
  return exact::rows_gradient(n, all, 1, chain);
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
    .traits = {.exact_for = "every input",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny,
               .gradients = kGradients},
    .notes = "",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "urpe", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors& in, const AttnOut& out, Context& context) {
            urpe_attention(qkv, array(in, "multiplier", "urpe"), array(in, "distance_bias", "urpe"), o, out, context);
          },
          [o = options_from(spec)](const Qkv& qkv, const Tensors& in, const AttnOut&, const AttnOutGrad& grad_out,
                                   const Tensors& grad_in, Context& context) {
            auto to = [&](std::string_view name) { return array(grad_in, name, "urpe"); };
            urpe_attention_backward(qkv, array(in, "multiplier", "urpe"), array(in, "distance_bias", "urpe"), o,
                                    grad_out, {to("q"), to("k"), to("v"), to("multiplier"), to("distance_bias")},
                                    context);
          });
    },
    .reference = [](const Spec& spec) { return make_urpe_reference(options_from(spec)); },
    .bound = urpe_bound,
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
