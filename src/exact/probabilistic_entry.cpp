// The registry's entry for probabilistic.
#include "attend/exact/probabilistic.h"
#include "attend/reference/probabilistic.h"
#include "exact/cascades.h"
#include "exact/score_entries.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {option::kScale};
constexpr Port kIn[] = {
    port::kQ,
    port::kK,
    {"v", "B Hkv Tk Dv", "f32 f16 bf16", true, "values"},
    {"exist", "B Tk", "f32", true, "probability that a token exists", 0.001, 1},
};
constexpr Port kOut[] = {port::kOut};
constexpr Paper kPapers[] = {
    {"Zonkey: A Hierarchical Diffusion Language Model with Differentiable Tokenization and Probabilistic Attention", "",
     "277"},
};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "self", "grouped"},
                           kGradients[] = {"q", "k", "v", "exist"};

ProbabilisticOptions options_from(const Spec& spec) {
  return {.scale = spec.real("scale")};
}

double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  bound::SoftmaxNorms n = softmax_norms(spec, in);
  const View exist = array(in, "exist", "probabilistic");
  double least = 1;
  for (int64_t i = 0; i < exist.count(); ++i) least = std::min(least, std::max(value_at(exist, i), 1e-20));
  // Two logarithms, their difference, and the sum.
  n.bias = -4 * std::log(least);
  if (output == "out") return bound::softmax(n);
  const bound::SoftmaxGradientNorms g = gradient_norms(n, in);
  const double rows = static_cast<double>(g.rows);
  if (output == "grad q") return exact::rows_gradient(g, 1, n.scale * g.k_max, n.keys);
  if (output == "grad k") return exact::rows_gradient(g, rows, n.scale * g.q_max, g.rows);
  if (output == "grad v") return exact::rows_weights(g, rows, g.d_out, g.rows);
  const double heads = static_cast<double>(array(in, "q", "probabilistic").shape[1]);
  return exact::rows_gradient(g, heads * static_cast<double>(n.keys), 1 / least, n.keys + array(in, "q", "").shape[1]);
}

constexpr Entry kProbabilistic = {
    .kind = Kind::kMechanism,
    .name = "probabilistic",
    .room = "exact",
    .equation = "w[i,.] = softmax over j of scale * q[i].k[j] + (j > i ? ln exist[j] - ln exist[i] : 0)",
    .summary = "attention to tokens that may not exist: a soft mask of the tokens after a query",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny,
               .gradients = kGradients},
    .notes = "The mechanism; the paper's segment splitter and stitcher are not here.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "probabilistic", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors& in, const AttnOut& out, Context& context) {
            probabilistic_attention(qkv, array(in, "exist", "probabilistic"), o, out.out, context);
          },
          [o = options_from(spec)](const Qkv& qkv, const Tensors& in, const AttnOut&, const AttnOutGrad& grad_out,
                                   const Tensors& grad_in, Context& context) {
            auto to = [&](std::string_view name) { return array(grad_in, name, "probabilistic"); };
            probabilistic_attention_backward(qkv, array(in, "exist", "probabilistic"), o, grad_out.out,
                                             {to("q"), to("k"), to("v"), to("exist")}, context);
          });
    },
    .reference = [](const Spec& spec) { return make_probabilistic_reference(options_from(spec)); },
    .bound = error_bound,
    .cascade = "s[i,j] = q[i,d] * k[j,d] + later[i,j]\n" ATTEND_CASCADE_OF_SCORES,
    .passes = 1,
    .refuses = [](const Spec&, const Sizes& sizes) -> std::string_view {
      return sizes.tq == sizes.tk ? "" : "is self-attention: as many queries as keys";
    },
};

}  // namespace

void register_probabilistic(Registry& registry) {
  registry.add(kProbabilistic);
}

}  // namespace attend
