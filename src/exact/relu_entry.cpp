// The registry's entry for relu.
#include <algorithm>
#include <cmath>
#include <vector>

#include "attend/exact/relu.h"
#include "attend/reference/relu.h"
#include "exact/score_entries.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {option::kCausal, option::kScale};
constexpr Port kIn[] = {port::kQ, port::kK, port::kV, port::kKvLens, port::kQPositions, port::kBias};
constexpr Port kOut[] = {port::kOut};
constexpr Paper kPapers[] = {{"Replacing softmax with ReLU in Vision Transformers", "2309.08586", ""}};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"},
                           kGradients[] = {"q", "k", "v", "bias"};

ReluOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"), .scale = spec.real("scale")};
}

// The largest number of keys of a query, of queries of a key over one kv head, and of scores of an element of the bias,
// whose score is so close to 0 that rounding may switch its slope; over the number of keys that the query sees.
struct Switched {
  double keys = 0, queries = 0, biased = 0;
};
Switched may_switch(const Spec& spec, const Tensors& in, double error) {
  const View k = array(in, "k", "bound"), bias = array(in, "bias", "bound");
  const double scale = softmax_norms(spec, in).scale;
  const int64_t group = array(in, "q", "bound").shape[1] / k.shape[1], keys = k.shape[2];
  Switched most;
  std::vector<double> by_key(static_cast<size_t>(k.shape[0] * k.shape[1] * keys), 0),
      by_bias(static_cast<size_t>(bias.data ? bias.count() : 0), 0);
  exact::each_bound_row(in, spec.flag("causal"), [&](const exact::BoundRow& row, int64_t) {
    const double share = 1 / static_cast<double>(row.dots.size());
    double near = 0;
    for (size_t j = 0; j < row.dots.size(); ++j) {
      const int64_t slot = static_cast<int64_t>(j);
      if (!(std::abs(scale * row.dots[j] + exact::bias_at(bias, row.b, row.h, row.i, slot)) <= error)) continue;
      near += share;
      double& queries = by_key[static_cast<size_t>((row.b * k.shape[1] + row.h / group) * keys + slot)];
      most.queries = std::max(most.queries, queries += share);
      if (!bias.data) continue;
      double& biased = by_bias[static_cast<size_t>(exact::bias_index(bias, row.b, row.h, row.i, slot))];
      most.biased = std::max(most.biased, biased += share);
    }
    most.keys = std::max(most.keys, near);
  });
  return most;
}

double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  const bound::SoftmaxNorms n = softmax_norms(spec, in);
  // n weights of at most score / n.
  const double score = n.scale * n.query * n.key + n.bias, moved = bound::softmax_score(n);
  if (output == "out") return n.value * (moved + score * (exact::sum_error(n.keys) + 4 * bound::kEpsilon)) + 1e-37;
  // Gradients of scores: at most |d_out| |v| / n, with the error of that dot product and two more roundings.
  const bound::SoftmaxGradientNorms g = gradient_norms(n, in);
  const double rows = static_cast<double>(g.rows);
  if (output == "grad v") return rows * g.d_out * (moved + score * bound::gamma(g.rows + 8)) + 1e-37;
  const Switched switched = may_switch(spec, in, 2 * moved + 1e-37);
  const double slope = g.d_out * g.value, error = bound::gamma(g.dv + 6);
  if (output == "grad q") return n.scale * g.k_max * slope * (error + bound::gamma(n.keys + 4) + switched.keys) + 1e-37;
  if (output == "grad k")
    return n.scale * g.q_max * slope * (rows * (error + bound::gamma(g.rows + 4)) + switched.queries) + 1e-37;
  const int64_t terms = exact::bias_terms(in);
  return slope * (static_cast<double>(terms) * (error + bound::gamma(terms + 4)) + switched.biased) + 1e-37;
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
    .traits = {.exact_for = "every input",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny,
               .gradients = kGradients},
    .notes = "n is the number of keys that the query sees, where the paper takes the length of the text.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "relu", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors&, const AttnOut& out, Context& context) {
            relu_attention(qkv, o, out.out, context);
          },
          [o = options_from(spec)](const Qkv& qkv, const Tensors&, const AttnOut&, const AttnOutGrad& grad_out,
                                   const Tensors& grad_in, Context& context) {
            relu_attention_backward(qkv, o, grad_out.out,
                                    {array(grad_in, "q", "relu"), array(grad_in, "k", "relu"),
                                     array(grad_in, "v", "relu"), array(grad_in, "bias", "relu")},
                                    context);
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
