#include "attend/exact/relative.h"
#include "attend/reference/relative.h"
#include "exact/entries.h"
#include "exact/function_operator.h"
#include "exact/score_bound.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {
    option::kCausal,
    option::kScale,
    {"past", "", "tables hold the distances -K..0 only; needs causal", "false", OptionType::kFlag, 0, 0},
};
constexpr Port kIn[] = {
    port::kQ,
    port::kK,
    port::kV,
    port::kKvLens,
    port::kQPositions,
    {"relative_keys", "Hq P D", "f32", true, "of each distance -K..K (or -K..0); beyond K the last counts"},
    {"relative_values", "Hq P Dv", "f32", false, "of each distance"},
    {"content_bias", "Hq D", "f32", false, "added to queries that meet keys"},
    {"position_bias", "Hq D", "f32", false, "added to queries that meet relative keys"},
    {"distance_bias", "Hq P", "f32", false, "of each distance, scaled with the scores"},
};
constexpr Port kOut[] = {port::kOut, port::kLse};
constexpr Paper kPapers[] = {
    {"Music Transformer", "1809.04281", "063"},
    {"Self-Attention with Relative Position Representations", "1803.02155", ""},
    {"Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context", "1901.02860", ""},
};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"},
                           kGradients[] = {"q",
                                           "k",
                                           "v",
                                           "relative_keys",
                                           "relative_values",
                                           "content_bias",
                                           "position_bias",
                                           "distance_bias"};

RelativeOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"), .scale = spec.real("scale"), .past = spec.flag("past")};
}

RelativeTables tables(const Tensors& in) {
  return {.keys = array(in, "relative_keys", "relative"),
          .values = array(in, "relative_values", "relative"),
          .content = array(in, "content_bias", "relative"),
          .position = array(in, "position_bias", "relative"),
          .bias = array(in, "distance_bias", "relative")};
}

// Keys and queries come with those of the tables; what all heads share sums over their rows, too. A sum by distance has
// as many terms as there are keys, a product with a table as many as it has rows.
double gradient_bound(const bound::SoftmaxNorms& norms, const Tensors& in, std::string_view output) {
  auto view = [&](std::string_view name) { return array(in, name, "bound"); };
  bound::SoftmaxGradientNorms n = gradient_norms(norms, in);
  n.value += exact::largest_row(view("relative_values"));
  const View q = view("q"), table = view("relative_keys");
  const double far = exact::largest(table), content = exact::largest(view("content_bias")),
               position = exact::largest(view("position_bias"));
  const std::string_view port = output.substr(5);
  const int64_t rows = q.shape[0] * q.shape[2], shared = array(in, port, "bound").shape[0] == 1 ? q.shape[1] : 1,
                chain = norms.keys + table.shape[1] + rows + 8;
  if (port == "q") return exact::rows_gradient(n, 1, norms.scale * (n.k_max + far), chain);
  if (port == "k")
    return exact::rows_gradient(n, static_cast<double>(n.rows), norms.scale * (n.q_max + content), n.rows);
  if (port == "v") return exact::rows_weights(n, static_cast<double>(n.rows), n.d_out, n.rows);
  const double all = static_cast<double>(rows * shared);
  if (port == "relative_values") return exact::rows_weights(n, all, n.d_out, chain);
  if (port == "relative_keys") return exact::rows_gradient(n, all, norms.scale * (n.q_max + position), chain);
  if (port == "content_bias") return exact::rows_gradient(n, all, norms.scale * n.k_max, chain);
  if (port == "position_bias") return exact::rows_gradient(n, all, norms.scale * far, chain);
  return exact::rows_gradient(n, all, norms.scale, chain);
}

// The second dot product has D + 4 roundings, shifting queries one for each. Relative values are weighted by weights
// that are computed again from lse (errors of a score and of lse) and by what is left of their sum.
double relative_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  auto row = [&](std::string_view name) { return exact::largest_row(array(in, name, "bound")); };
  bound::SoftmaxNorms norms = softmax_norms(spec, in);
  const double second = norms.scale * (norms.query + row("position_bias")) * row("relative_keys");
  norms.query += row("content_bias");
  const double bias = norms.scale * exact::largest(array(in, "distance_bias", "bound"));
  const double error =
      bound::gamma(norms.d + 4) * second + bound::kEpsilon * (2 * norms.scale * norms.query * norms.key + 3 * bias);
  if (output.starts_with("grad")) return gradient_bound(exact::with_scores(norms, second + bias, error), in, output);
  const double limit = exact::scored(norms, second + bias, error, output);
  const double value = exact::largest(array(in, "relative_values", "bound"));
  if (value == 0 || output == "lse") return limit;
  const double lse = exact::scored(norms, second + bias, error, "lse");
  const double weight = 2 * lse + bound::kEpsilon * static_cast<double>(2 * norms.keys + 16);
  return limit + 4 * weight * value + bound::kEpsilon * static_cast<double>(norms.keys + 4) * (value + norms.value);
}

constexpr Entry kEntry = {
    .kind = Kind::kMechanism,
    .name = "relative",
    .room = "exact",
    .equation =
        "w[i,.] = softmax over visible j of scale * ((q[i] + content[h]).k[j] + (q[i] + position[h]).keys[h,r] + "
        "bias[h,r])\no[i] = sum_j w[i,j] (v[j] + values[h,r]),  r = clip(j - i, -K, K)",
    .summary = "a learned vector for each distance joins keys and values; skewed in place, O(T D) memory",
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
        "063: the mechanism; the melody model has to be trained. Transformer-XL: relative_keys are the projected "
        "sinusoids. Keys must be arrays.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "relative", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors& in, const AttnOut& out, Context& context) {
            relative_attention(qkv, tables(in), o, out, context);
          },
          [o = options_from(spec)](const Qkv& qkv, const Tensors& in, const AttnOut&, const AttnOutGrad& grad_out,
                                   const Tensors& grad_in, Context& context) {
            const RelativeTables to = tables(grad_in);
            relative_attention_backward(
                qkv, tables(in), o, grad_out,
                {array(grad_in, "q", "relative"), array(grad_in, "k", "relative"), array(grad_in, "v", "relative"),
                 to.keys, to.values, to.content, to.position, to.bias},
                context);
          });
    },
    .reference = [](const Spec& spec) { return make_relative_reference(options_from(spec)); },
    .bound = relative_bound,
    .axis = [](std::string_view name, const Spec&, const Sizes& sizes) -> int64_t {
      return name == "P" ? sizes.tk / 3 * 2 + 1 : -1;
    },
    .refuses = [](const Spec& spec, const Sizes&) -> std::string_view {
      return spec.flag("past") && !spec.flag("causal") ? "past needs causal" : "";
    },
};

}  // namespace

void register_relative(Registry& registry) {
  registry.add(kEntry);
}

}  // namespace attend
