#include <optional>

#include "attend/exact/attention_operator.h"
#include "attend/exact/dca.h"
#include "attend/exact/divided_frequencies.h"
#include "attend/reference/dca.h"
#include "exact/entries.h"
#include "exact/rope_spec.h"
#include "exact/score_bound.h"

namespace attend {
namespace {

constexpr double kMostTokens = 1 << 30;
constexpr Option kOptions[] = {
    option::kScale,
    {"context", "tokens", "trained context: no distance reaches it", "4096", OptionType::kInteger, 2, kMostTokens},
    {"chunk", "tokens", "of a chunk, below the context; 0 means three quarters of it", "0", OptionType::kInteger, 0,
     kMostTokens},
    ATTEND_ROTARY_OPTIONS,
};
constexpr Port kIn[] = {
    port::kQ,
    {"k", "B Hkv Tk D", "f32 f16 bf16", true, "keys, unrotated, at positions 0, 1, ..; or a store's key views"},
    port::kV,
    port::kQPositions,
};
constexpr Port kOut[] = {port::kOut, port::kLse};
constexpr Paper kPapers[] = {
    {"Training-Free Long-Context Scaling of Large Language Models", "2402.17463", "172"},
};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"causal", "self", "grouped"},
                           kGradients[] = {"q", "k", "v"};

bool by_length(const RopeOptions& rope) {
  return rope.scaling == RopeScaling::kDynamicNtk || rope.scaling == RopeScaling::kLongRope;
}

DcaOptions options_from(const Spec& spec) {
  return {.scale = spec.real("scale"),
          .context = spec.integer("context"),
          .chunk = spec.integer("chunk"),
          .rope = exact::rope_options(spec)};
}

class DualChunk : public AttentionOperator, public DividesFrequencies {
 public:
  explicit DualChunk(const DcaOptions& options) : AttentionOperator("dca", kIn, kOut), options_(options) {
    // A model says how many elements turn; then the angles are made once.
    if (options.rope.dims > 0 && !by_length(options.rope) &&
        exact::rope_refuses(options.rope, options.rope.dims).empty())
      angles_.emplace(rope_table(options.rope, options.rope.dims, 1));
  }

  void divide_frequencies(std::span<const float> divisors) override {
    if (!angles_) exact::refuse_divisors(op());
    angles_.emplace(exact::divided_table(options_.rope, divisors));
  }

  void backward(const Tensors& in, const Tensors& out, const Tensors& grad_out, const Tensors& grad_in,
                Context& context) const override {
    dca_attention_backward(inputs(in, 0), options_, outputs(out), {array(grad_out, "out"), array(grad_out, "lse")},
                           {.q = array(grad_in, "q"), .k = array(grad_in, "k"), .v = array(grad_in, "v")}, context,
                           angles_ ? &*angles_ : nullptr);
  }

  bool gives_weights() const override { return true; }
  void add_weights(const Tensors& in, const View& lse, const WeightPlaces& to, Context& context) const override {
    dca_add_weights(inputs(in, 0), options_, lse, to, context, angles_ ? &*angles_ : nullptr);
  }

  bool turns() const override { return true; }
  void turn_keys(const View& keys, std::span<const int32_t> positions, Context& context) const override {
    if (angles_) return dca_turn_keys(keys, positions, options_, *angles_, context);
    dca_turn_keys(keys, positions, options_, RopeAngles(rope_table(options_.rope, keys.shape[3], 1)), context);
  }

 protected:
  void attend(const Qkv& qkv, const Tensors&, const AttnOut& out, Context& context) const override {
    dca_attention(qkv, options_, out, context, angles_ ? &*angles_ : nullptr);
  }

 private:
  DcaOptions options_;
  std::optional<RopeAngles> angles_;
};

constexpr Entry kEntry = {
    .kind = Kind::kMechanism,
    .name = "dca",
    .room = "exact",
    .equation =
        "w[i,.] = softmax over j <= i of scale * (R(x) q[i]).(R(j mod chunk) k[j])\n"
        "x = i mod chunk in the own chunk, min(i mod chunk + chunk, context - 1) for the one before, context - 1 "
        "for earlier ones",
    .summary = "dual chunk attention: rotary positions that stay within the trained context",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input; equal to rotary attention within a chunk",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny,
               .gradients = kGradients},
    .notes = "Always causal. In a model the keys of the store are those of turn_keys().",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return std::make_unique<DualChunk>(options_from(spec));
    },
    .reference = [](const Spec& spec) { return make_dca_reference(options_from(spec)); },
    .bound =
        [](const Spec& spec, const Tensors& in, std::string_view output) {
          bound::SoftmaxNorms norms = softmax_norms(spec, in);
          const double magnitude = std::max(1.0, rope_table(exact::rope_options(spec), norms.d, 1).magnitude);
          norms.query *= magnitude;
          norms.key *= magnitude;
          const double error = exact::rotary_error(norms);
          // Two more merges of partials than a split of 512 positions each has.
          norms.keys += 2 * 512;
          const bound::SoftmaxNorms scores = exact::with_scores(norms, 0, error);
          if (!output.starts_with("grad")) return softmax_bound(scores, in, output);
          return 1.1 * exact::rotary_gradient(scores, in, magnitude, output);
        },
    .refuses = [](const Spec& spec, const Sizes& sizes) -> std::string_view {
      const DcaOptions options = options_from(spec);
      if (options.chunk_tokens() < 1 || options.chunk_tokens() >= options.context)
        return "a chunk has a token or more and less than the context";
      if (by_length(options.rope)) return "the scaling must not depend on the text's length";
      return exact::rope_refuses(options.rope, sizes.d);
    },
};

}  // namespace

void register_dca(Registry& registry) {
  registry.add(kEntry);
}

}  // namespace attend
