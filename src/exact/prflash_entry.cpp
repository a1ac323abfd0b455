// The registry's entry for prflash.
#include "attend/exact/attention_operator.h"
#include "attend/exact/prflash.h"
#include "attend/reference/prflash.h"
#include "exact/cascades.h"
#include "exact/score_entries.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {
    option::kScale,
    {"block", "tokens", "side of a block; multiples of 64 cost least", "64", OptionType::kInteger, 1, 1e9},
    {"power", "", "a block at distance n takes part with probability (1 + n)^-power", "1", OptionType::kReal, 0, 1e6},
    {"seed", "", "another one draws another round", "0", OptionType::kInteger, 0, 1e15},
};
constexpr Port kIn[] = {
    port::kQ,
    port::kK,
    port::kV,
    port::kKvLens,
    port::kQPositions,
    {"probability", "Distances", "f32", false, "of each distance in blocks, the last also beyond; instead of power", 0,
     1},
};
constexpr Port kOut[] = {port::kOut, port::kLse};
constexpr Paper kPapers[] = {
    {"The Nature of Mathematical Modeling and Probabilistic Optimization Engineering in Generative AI", "2410.18441",
     "237"},
};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"causal", "self", "cross", "grouped"},
                           kGradients[] = {"q", "k", "v"};

PrFlashOptions options_from(const Spec& spec) {
  return {.scale = spec.real("scale"),
          .block = spec.integer("block"),
          .power = spec.real("power"),
          .seed = spec.integer("seed")};
}

// Pairs j <= i whose blocks take part.
double drawn_pairs(const Spec& spec, const Sizes& sizes) {
  const PrFlashOptions options = options_from(spec);
  const int64_t blocks = (std::max<int64_t>(1, sizes.tk) + options.block - 1) / options.block;
  const std::vector<bool> drawn = prflash_blocks(blocks, {}, options);
  double pairs = 0;
  for (int64_t i = std::max<int64_t>(0, sizes.tk - sizes.tq); i < sizes.tk; ++i) {
    const int64_t own = i / options.block;
    pairs += static_cast<double>(i - own * options.block + 1);
    for (int64_t j = 0; j < own; ++j)
      pairs += static_cast<double>(drawn[static_cast<size_t>(own * blocks + j)] ? options.block : 0);
  }
  return pairs;
}

constexpr Entry kEntry = {
    .kind = Kind::kMechanism,
    .name = "prflash",
    .room = "exact",
    .equation =
        "w[i,.] = softmax over j <= i of scale * q[i].k[j] where block J of j takes part for block I of i\n"
        "J takes part for I  <=>  J = I or draw(seed, I, J) < 2^32 (1 + I - J)^-power",
    .summary = "causal attention to blocks drawn with a probability that falls with their distance",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "power = 0, where every block takes part; else the blocks that are drawn",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny,
               .gradients = kGradients},
    .notes =
        "237: the abstract says a probability distribution over block distances; the paper's own was not at hand, so "
        "power is ours and the port `probability` takes any. Blocks are shared by batch entries and heads, and weights "
        "are not rescaled. No gradient of `probability`: a draw has none.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "prflash", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors& in, const AttnOut& out, Context& context) {
            prflash_attention(qkv, array(in, "probability", "prflash"), o, out, context);
          },
          [o = options_from(spec)](const Qkv& qkv, const Tensors& in, const AttnOut& forward,
                                   const AttnOutGrad& grad_out, const Tensors& grad_in, Context& context) {
            auto to = [&](std::string_view name) { return array(grad_in, name, "prflash"); };
            prflash_attention_backward(qkv, array(in, "probability", "prflash"), o, forward, grad_out,
                                       {.q = to("q"), .k = to("k"), .v = to("v")}, context);
          });
    },
    .reference = [](const Spec& spec) { return make_prflash_reference(options_from(spec)); },
    .bound = softmax_bound,
    .axis = [](std::string_view name, const Spec&, const Sizes&) -> int64_t { return name == "Distances" ? 3 : -1; },
    .cascade = "s[i,j] = q[i,d] * k[j,d] + drawn[i,j]\n" ATTEND_CASCADE_OF_SCORES,
    .passes = 1,
    .pairs = drawn_pairs,
};

}  // namespace

void register_prflash(Registry& registry) {
  registry.add(kEntry);
}

}  // namespace attend
