// The registry's entry for sinkhorn.
#include "attend/exact/sinkhorn.h"
#include "attend/reference/sinkhorn.h"
#include "exact/score_entries.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {
    option::kScale, {"iterations", "", "normalisations, rows first; 1 is softmax", "3", OptionType::kInteger, 1, 1000}};
constexpr Port kIn[] = {port::kQ, port::kK, {"v", "B Hkv Tk Dv", "f32 f16 bf16", true, "values"}};
constexpr Port kOut[] = {port::kOut};
constexpr Paper kPapers[] = {{"Sinkformers: Transformers with Doubly Stochastic Attention", "2110.11773", "186"}};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "self", "cross", "grouped"},
                           kGradients[] = {"q", "k", "v"};

SinkhornOptions options_from(const Spec& spec) {
  return {.scale = spec.real("scale"), .iterations = spec.integer("iterations")};
}

double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  bound::SoftmaxNorms n = softmax_norms(spec, in);
  const double steps = static_cast<double>(spec.integer("iterations"));
  const double queries = static_cast<double>(array(in, "q", "bound").shape[2]),
               lines = std::max(queries, static_cast<double>(n.keys));
  // A potential is within twice the largest score and the logs of both lengths; each step adds the error of an lse to
  // the errors of the potentials before it.
  const double score = n.scale * n.query * n.key;
  n.bias = 2 * score + 2 * std::log(lines + 1);
  n.keys = static_cast<int64_t>(lines);
  const double relative = 2 * (steps + 1) * bound::softmax_lse(n) + 2 * bound::softmax_weight(n);
  const double weights = spec.integer("iterations") % 2 == 1 ? 1 : queries;
  if (output == "out") return n.value * weights * (relative + 2 * exact::sum_error(n.keys)) + 1e-37;
  // Weights of a line of a step sum to 1, so the gradients of a step's potentials have together no more magnitude than
  // those of the step after it: all rows, with a slope each. Each errs by its weights and sums and those after it.
  const bound::SoftmaxGradientNorms g = gradient_norms(n, in);
  const double count = spec.integer("iterations") % 2 == 1 ? steps : steps + 1;
  const double all = static_cast<double>(g.rows) * weights, step = relative + bound::gamma(n.keys + g.dv + 16),
               moved = all * bound::softmax_slope(g) * count * (count + 1) / 2 * step;
  if (output == "grad q") return n.scale * g.k_max * moved + 1e-37;
  if (output == "grad k") return n.scale * g.q_max * moved + 1e-37;
  return all * g.d_out * step + 1e-37;
}

constexpr Entry kSinkhorn = {
    .kind = Kind::kMechanism,
    .name = "sinkhorn",
    .room = "exact",
    .equation =
        "o[i] = sum_j exp(s[i,j] + f[i] + g[j]) v[j],  rows and columns of exp(s) normalised in turn by f and g,  s = "
        "scale * q[i].k[j]",
    .summary = "attention with a doubly stochastic matrix",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny,
               .gradients = kGradients},
    .notes = "A column sees all queries: no causal form. Columns sum to Tq / Tk.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "sinkhorn", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors&, const AttnOut& out, Context& context) {
            sinkhorn_attention(qkv, o, out.out, context);
          },
          [o = options_from(spec)](const Qkv& qkv, const Tensors&, const AttnOut&, const AttnOutGrad& grad_out,
                                   const Tensors& grad_in, Context& context) {
            auto to = [&](std::string_view name) { return array(grad_in, name, "sinkhorn"); };
            sinkhorn_attention_backward(qkv, o, grad_out.out, {.q = to("q"), .k = to("k"), .v = to("v")}, context);
          });
    },
    .reference = [](const Spec& spec) { return make_sinkhorn_reference(options_from(spec)); },
    .bound = error_bound,
};

}  // namespace

void register_sinkhorn(Registry& registry) {
  registry.add(kSinkhorn);
}

}  // namespace attend
