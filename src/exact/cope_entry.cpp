#include <cmath>
#include <vector>

#include "attend/exact/cope.h"
#include "attend/reference/cope.h"
#include "exact/entries.h"
#include "exact/function_operator.h"
#include "exact/score_entries.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {option::kScale};
constexpr Port kIn[] = {
    port::kQ,
    port::kK,
    port::kV,
    {"embeddings", "P D", "f32", true, "of the positions 0 .. P - 1"},
};
constexpr Port kOut[] = {port::kOut, port::kLse};
constexpr Paper kPapers[] = {
    {"Contextual Position Encoding: Learning to Count What's Important", "2405.18719", ""},
};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"causal", "self", "grouped"},
                           kGradients[] = {"q", "k", "v", "embeddings"};

CopeOptions options_from(const Spec& spec) {
  return {.scale = spec.real("scale")};
}

// A row's gradients of scores err by what softmax's do, and by those of the gates: sums of the gradients of counts, each
// a gradient of a score times a difference of products with embeddings, which changes where a count is an integer.
double gradient_bound(const bound::SoftmaxNorms& norms, const Tensors& in, std::string_view port, double z, double gate,
                      double count) {
  const bound::SoftmaxGradientNorms n = gradient_norms(norms, in);
  const View q = array(in, "q", "bound"), k = array(in, "k", "bound"), embeddings = array(in, "embeddings", "bound");
  const double slope = bound::softmax_slope(n), error = exact::row_slope_error(n),
               last = static_cast<double>(embeddings.shape[0] - 1);
  const int64_t chain = norms.keys + norms.d + 16, group = q.shape[1] / k.shape[1];
  const double of_counts = 2 * z * error + slope * 2 * z * bound::gamma(chain),
               of_gates = slope * 2 * z * (gate + 8 * bound::kEpsilon);
  std::vector<double> by_head(static_cast<size_t>(k.shape[0] * k.shape[1]), 0);
  double row_most = 0;
  exact::each_bound_row(in, true, [&](const exact::BoundRow& row, int64_t) {
    double sum = 0, gates = 0;
    bool bends = false;
    for (size_t j = row.dots.size(); j-- > 0;) {
      const double g = 1 / (1 + std::exp(-norms.scale * row.dots[j]));
      sum += g, gates += g * (1 - g);
      bends = bends || (sum < last + 2 * count && std::abs(sum - std::round(sum)) <= 2 * count);
    }
    // Of all scores of the row together.
    const double of_row = error + gates * (of_counts + (bends ? slope * 4 * z : 0)) +
                          static_cast<double>(row.dots.size()) * of_gates +
                          bound::gamma(chain) * slope * (1 + 2 * z * gates);
    row_most = std::max(row_most, of_row);
    by_head[static_cast<size_t>(row.b * k.shape[1] + row.h / group)] += of_row;
  });
  const double products = error + slope * (4 * count + bound::gamma(chain)),
               rows = static_cast<double>(q.shape[0] * q.shape[1] * q.shape[2]);
  if (port == "q") return norms.scale * (n.k_max * row_most + exact::largest(embeddings) * products) + 1e-37;
  if (port == "k") {
    double most = 0;
    for (const double of_head : by_head) most = std::max(most, of_head);
    return norms.scale * n.q_max * most + 1e-37;
  }
  if (port == "v") return exact::rows_weights(n, static_cast<double>(n.rows), n.d_out, n.rows);
  return norms.scale * n.q_max * rows * (products + slope * bound::gamma(n.rows * k.shape[1] + 16)) + 1e-37;
}

// A gate moves by a quarter of its score's error and 7 epsilon, a count by that of all keys and one rounding each of a
// number below P, the interpolated product by twice its magnitude times that.
double cope_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  const bound::SoftmaxNorms norms = softmax_norms(spec, in);
  const View embeddings = array(in, "embeddings", "bound");
  const double z = norms.scale * norms.query * exact::largest_row(embeddings), keys = static_cast<double>(norms.keys);
  const double gate = bound::softmax_score(norms) / 4 + 7 * bound::kEpsilon;
  const double count = keys * (gate + bound::kEpsilon * std::min(keys, static_cast<double>(embeddings.shape[0])));
  const double error = 2 * z * count + bound::gamma(norms.d + 8) * z;
  if (!output.starts_with("grad")) return exact::scored(norms, z, error, output);
  return gradient_bound(exact::with_scores(norms, z, error), in, output.substr(5), z, gate, count);
}

constexpr Entry kEntry = {
    .kind = Kind::kMechanism,
    .name = "cope",
    .room = "exact",
    .equation =
        "w[i,.] = softmax over j <= i of scale * (q[i].k[j] + z(p[i,j])),  p[i,j] = min(sum of g[i,t] over j <= t "
        "<= i, P - 1)\ng[i,j] = sigmoid(scale * q[i].k[j]),  z(p) = q[i].e[p] at integers, linear between",
    .summary = "distance counts only the tokens that a gate lets count",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny,
               .gradients = kGradients},
    .notes = "Always causal. Gates use the keys; separate gate keys (section 4 of the paper) are not offered.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "cope", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors& in, const AttnOut& out, Context& context) {
            cope_attention(qkv, array(in, "embeddings", "cope"), o, out, context);
          },
          [o = options_from(spec)](const Qkv& qkv, const Tensors& in, const AttnOut&, const AttnOutGrad& grad_out,
                                   const Tensors& grad_in, Context& context) {
            auto to = [&](std::string_view name) { return array(grad_in, name, "cope"); };
            cope_attention_backward(qkv, array(in, "embeddings", "cope"), o, grad_out,
                                    {to("q"), to("k"), to("v"), to("embeddings")}, context);
          });
    },
    .reference = [](const Spec& spec) { return make_cope_reference(options_from(spec)); },
    .bound = cope_bound,
    .axis = [](std::string_view name, const Spec&, const Sizes&) -> int64_t { return name == "P" ? 16 : -1; },
};

}  // namespace

void register_cope(Registry& registry) {
  registry.add(kEntry);
}

}  // namespace attend
