#include <optional>

#include "attend/exact/attention_operator.h"
#include "attend/exact/rope.h"
#include "attend/reference/rope.h"
#include "attend/tensor/error.h"
#include "exact/cascades.h"
#include "exact/entries.h"
#include "exact/rope_spec.h"
#include "exact/score_bound.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {
    option::kCausal,  option::kScale,   exact::kDims,      exact::kBase,       exact::kInterleaved,
    exact::kScaling,  exact::kFactor,   exact::kOriginal,  exact::kMagnitude,  exact::kExtrapolation,
    exact::kBetaFast, exact::kBetaSlow, exact::kLowFactor, exact::kHighFactor,
};
constexpr Port kIn[] = {
    port::kQ,
    {"k", "B Hkv Tk D", "f32 f16 bf16", true, "keys, unrotated, at positions 0, 1, ..; or a store's key views"},
    port::kV,
    port::kKvLens,
    port::kQPositions,
    {"bases", "B", "f32", false, "base of each batch entry, instead of the option", 5, 20000},
    {"short_factors", "Pairs", "f32", false, "divisors of the frequencies; of longrope's up to `original` tokens", 0.5,
     8},
    {"long_factors", "Pairs", "f32", false, "longrope's divisors beyond", 0.5, 8},
};
constexpr Port kOut[] = {port::kOut, port::kLse};
constexpr Paper kPapers[] = {
    {"RoFormer: Enhanced Transformer with Rotary Position Embedding", "2104.09864", ""},
    {"Extending Context Window of Large Language Models via Positional Interpolation", "2306.15595", ""},
    {"YaRN: Efficient Context Window Extension of Large Language Models", "2309.00071", ""},
    {"LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens", "2402.13753", ""},
    {"Fortify the Shortest Stave in Attention: Enhancing Context Awareness of Large Language Models for Effective Tool "
     "Use",
     "2312.04455", "091"},
};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"},
                           kGradients[] = {"q", "k", "v"};

RopeAttentionOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"), .scale = spec.real("scale"), .rope = exact::rope_options(spec)};
}

class RopeMechanism : public AttentionOperator {
 public:
  explicit RopeMechanism(const RopeAttentionOptions& options)
      : AttentionOperator("rope", kIn, kOut), options_(options) {
    // A model says how many elements turn; then the angles are made once, unless they change with the text.
    const bool fixed =
        options.rope.scaling != RopeScaling::kDynamicNtk && options.rope.scaling != RopeScaling::kLongRope;
    if (fixed && options.rope.dims > 0 && exact::rope_refuses(options.rope, options.rope.dims).empty())
      angles_.emplace(rope_table(options.rope, options.rope.dims, 1));
  }

  void backward(const Tensors& in, const Tensors& out, const Tensors& grad_out, const Tensors& grad_in,
                Context& context) const override {
    rope_attention_backward(inputs(in, 0), array(in, "bases"), {array(in, "short_factors"), array(in, "long_factors")},
                            options_, {array(out, "out"), array(out, "lse")},
                            {array(grad_out, "out"), array(grad_out, "lse")},
                            {array(grad_in, "q"), array(grad_in, "k"), array(grad_in, "v")}, context, angles_of(in));
  }

  bool turns() const override { return true; }
  void turn_keys(const View& keys, std::span<const int32_t> positions, Context& context) const override {
    if (!angles_)
      throw Error(ErrorKind::kUnsupported, "rope", "scaling", "", "must not depend on the text's length in a model");
    std::vector<int32_t> at;
    for (int64_t b = 0; b < keys.shape[0]; ++b) at.insert(at.end(), positions.begin(), positions.end());
    rope_rotate(keys, dense_view(at.data(), DType::kI32, {keys.shape[0], static_cast<int64_t>(positions.size())}),
                *angles_, options_.rope.interleaved, keys, context);
  }

 protected:
  void attend(const Qkv& qkv, const Tensors& in, const AttnOut& out, Context& context) const override {
    rope_attention(qkv, array(in, "bases"), {array(in, "short_factors"), array(in, "long_factors")}, options_, out,
                   context, angles_of(in));
  }

 private:
  // Those made once, unless an input changes them.
  const RopeAngles* angles_of(const Tensors& in) const {
    return angles_ && !array(in, "bases").data && !array(in, "short_factors").data ? &*angles_ : nullptr;
  }

  RopeAttentionOptions options_;
  std::optional<RopeAngles> angles_;
};

// Scores grow by the square of the magnitude.
double rope_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  bound::SoftmaxNorms norms = softmax_norms(spec, in);
  const double magnitude = rope_table(exact::rope_options(spec), norms.d, norms.keys).magnitude;
  norms.query *= std::max(1.0, magnitude);
  norms.key *= std::max(1.0, magnitude);
  const bound::SoftmaxNorms scores = exact::with_scores(norms, 0, exact::rotary_error(norms));
  if (output == "out" || output == "lse") return softmax_bound(scores, in, output);
  return exact::rotary_gradient(scores, in, magnitude, output);
}

constexpr Entry kEntry = {
    .kind = Kind::kMechanism,
    .name = "rope",
    .room = "exact",
    .equation =
        "w[i,.] = softmax over visible j of scale * (R(i) q[i]).(R(j) k[j])\n"
        "R(p) turns pair n of a head by p f[n],  f[n] = base^(-2n / dims), stretched by `scaling`",
    .summary = "rotary position embeddings with every scaling in use; several bases at once",
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
        "091: copies of a text as batch entries with a base each; merge_buckets() merges their output "
        "distributions. Scalings dynamic and longrope depend on the text's length so far, so bits do too.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return std::make_unique<RopeMechanism>(options_from(spec));
    },
    .reference =
        [](const Spec& spec) {
          return make_rope_reference(exact::rope_options(spec), spec.flag("causal"), spec.real("scale"));
        },
    .bound = rope_bound,
    .axis = [](std::string_view name, const Spec& spec, const Sizes& sizes) -> int64_t {
      if (name != "Pairs") return -1;
      const int64_t dims = exact::rope_options(spec).dims;
      return (dims == 0 ? sizes.d : dims) / 2;
    },
    .cascade =
        "x[i,d] = turn(q[i,d])\n"
        "y[j,d] = turn(k[j,d])\n"
        "s[i,j] = x[i,d] * y[j,d]\n" ATTEND_CASCADE_OF_SCORES,
    .passes = 2,
    .refuses = [](const Spec& spec,
                  const Sizes& sizes) { return exact::rope_refuses(exact::rope_options(spec), sizes.d); },
};

}  // namespace

void register_rope(Registry& registry) {
  registry.add(kEntry);
}

}  // namespace attend
