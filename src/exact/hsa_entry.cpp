// The registry's entry for hsa.
#include "attend/exact/hsa.h"
#include "attend/reference/hsa.h"
#include "exact/score_entries.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {
    {"branch", "", "children of a node; as many as tokens: a flat tree", "8", OptionType::kInteger, 2, 1e9},
    option::kScale};
constexpr Port kIn[] = {port::kQ, port::kK, {"v", "B Hkv Tk Dv", "f32 f16 bf16", true, "values"}};
constexpr Port kOut[] = {port::kOut};
constexpr Paper kPapers[] = {
    {"Hierarchical Self-Attention: Generalizing Neural Attention Mechanics to Multi-Scale Problems", "2509.15448",
     "281"}};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "self", "grouped"},
                           kGradients[] = {"q", "k", "v"};

HsaOptions options_from(const Spec& spec) {
  return {.branch = spec.integer("branch"), .scale = spec.real("scale")};
}

double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  const bound::SoftmaxNorms n = softmax_norms(spec, in);
  const double width = static_cast<double>(std::min<int64_t>(spec.integer("branch"), n.keys)),
               score = n.scale * n.query * n.key;
  double levels = 1;
  for (int64_t nodes = n.keys; nodes > 1; nodes = (nodes - 1) / spec.integer("branch") + 1) ++levels;
  // Means round width + 3 times a level; an energy takes the errors of the level below and of a sum of exponentials.
  const double mean = bound::kEpsilon * levels * (width + 3);
  const double step = bound::kEpsilon * (width / 16 + 20 + 6 * (score + std::log(static_cast<double>(n.keys) + 1)));
  const double energy = bound::softmax_score(n) + 2 * mean * score + levels * step;
  const double level = 4 * energy + bound::kEpsilon * (width + 16);
  if (output == "out") return n.value * (levels * level + mean) + 1e-37;
  // A node's gradients are at most its tokens times a slope, once more for every level above it, whose energies hand
  // theirs on; a token has its part of each level's. A key, and a value, gathers those of all tokens.
  const bound::SoftmaxGradientNorms g = gradient_norms(n, in);
  const double meetings = std::max(1.0, levels - 1);
  const double relative = (meetings + 1) * (level + bound::gamma(g.dv + 16) + mean) + bound::gamma(n.keys + 16),
               tokens = static_cast<double>(g.rows), slope = meetings * (meetings + 1) / 2 * bound::softmax_slope(g);
  if (output == "grad q") return n.scale * g.k_max * slope * relative + 1e-37;
  if (output == "grad k") return n.scale * g.q_max * tokens * slope * relative + 1e-37;
  return meetings * tokens * g.d_out * relative + 1e-37;
}

constexpr Entry kHsa = {
    .kind = Kind::kMechanism,
    .name = "hsa",
    .room = "exact",
    .equation =
        "o[i] = m(i) v[i] + sum over A above i, over siblings B of A, of m(parent) |B| exp(psi(A,B)) / Z(A) mean v(B)\n"
        "psi(A,B) = scale * mean q(A) . mean k(B),  Z(A) = exp(phi(A)) + sum of |B| exp(psi(A,B)),  phi(P) = sum of "
        "|A|/|P| ln Z(A)",
    .summary = "self-attention over a tree: branches meet as averages",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "the closest weights to softmax that are equal between branches; a flat tree is softmax",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny,
               .gradients = kGradients},
    .notes =
        "The entry's trees are balanced; the typed function takes any. A token's own energy is its score with itself. "
        "Not causal.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "hsa", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors&, const AttnOut& out, Context& context) {
            hsa_attention(qkv, o, out.out, context);
          },
          [o = options_from(spec)](const Qkv& qkv, const Tensors&, const AttnOut&, const AttnOutGrad& grad_out,
                                   const Tensors& grad_in, Context& context) {
            auto to = [&](std::string_view name) { return array(grad_in, name, "hsa"); };
            hsa_attention_backward(qkv, o, grad_out.out, {.q = to("q"), .k = to("k"), .v = to("v")}, context);
          });
    },
    .reference = [](const Spec& spec) { return make_hsa_reference(options_from(spec)); },
    .bound = error_bound,
    .refuses = [](const Spec&, const Sizes& sizes) -> std::string_view {
      return sizes.tq == sizes.tk ? "" : "is self-attention: as many queries as keys";
    },
    .pairs =
        [](const Spec& spec, const Sizes& sizes) {
          // The children of every node meet one another and themselves.
          const int64_t branch = spec.integer("branch");
          double pairs = 0;
          for (int64_t nodes = sizes.tk; nodes > 1; nodes = (nodes - 1) / branch + 1) {
            const double full = static_cast<double>(nodes / branch), wide = static_cast<double>(branch),
                         rest = static_cast<double>(nodes % branch);
            pairs += full * wide * wide + rest * rest;
          }
          return pairs;
        },
};

}  // namespace

void register_hsa(Registry& registry) {
  registry.add(kHsa);
}

}  // namespace attend
