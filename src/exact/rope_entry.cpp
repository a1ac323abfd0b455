#include <optional>

#include "attend/exact/attention_operator.h"
#include "attend/exact/divided_frequencies.h"
#include "attend/exact/rope.h"
#include "attend/reference/rope.h"
#include "attend/tensor/error.h"
#include "exact/cascades.h"
#include "exact/entries.h"
#include "exact/rope_spec.h"
#include "exact/score_bound.h"
#include "exact/visibility.h"

namespace attend {
namespace {

constexpr std::string_view kStreaming = "streaming";
constexpr Option kOptions[] = {
    option::kCausal,
    option::kScale,
    option::kWindow,
    option::kSinks,
    {"positions", "", "where keys stand: in the text, or, where some were dropped, among those that are left", "text",
     OptionType::kText, 0, 0, "text|cache"},
    ATTEND_ROTARY_OPTIONS,
};
constexpr Option kStreamingOptions[] = {
    option::kCausal,
    option::kScale,
    {"window", "tokens", "last keys a query sees, its own counted; 0 means all", "1020", OptionType::kInteger, 0,
     option::kMaxTokens},
    {"sinks", "tokens", "first keys that stay visible, right before the window", "4", OptionType::kInteger, 0,
     option::kMaxTokens},
    ATTEND_ROTARY_OPTIONS,
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
constexpr Paper kStreamingPapers[] = {
    {"Efficient Streaming Language Models with Attention Sinks", "2309.17453", "115"},
};
constexpr std::string_view kForms[] = {"parallel"},
                           kPatterns[] = {"full", "causal", "self", "cross", "grouped", "window", "sinks"},
                           kGradients[] = {"q", "k", "v"};

RopeAttentionOptions options_from(const Spec& spec) {
  const bool cache = spec.name == kStreaming || spec.text("positions") == "cache";
  return {.causal = spec.flag("causal"),
          .scale = spec.real("scale"),
          .window = spec.integer("window"),
          .sinks = spec.integer("sinks"),
          .positions = cache ? RopePositions::kCache : RopePositions::kText,
          .rope = exact::rope_options(spec)};
}

class RopeMechanism : public AttentionOperator, public DividesFrequencies {
 public:
  RopeMechanism(std::string_view name, const RopeAttentionOptions& options)
      : AttentionOperator(name, kIn, kOut), options_(options) {
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

  bool gives_weights() const override { return true; }
  void add_weights(const Tensors& in, const View& lse, const WeightPlaces& to, Context& context) const override {
    rope_add_weights(inputs(in, 0), array(in, "bases"), {array(in, "short_factors"), array(in, "long_factors")},
                     options_, lse, to, context, angles_of(in));
  }

  std::vector<KeyRange> needed_from(int64_t position) const override {
    return exact::needed_from(position, {.window = options_.window, .sinks = options_.sinks});
  }

  void divide_frequencies(std::span<const float> divisors) override {
    if (!angles_) exact::refuse_divisors(op());
    angles_.emplace(exact::divided_table(options_.rope, divisors));
  }

  bool turns() const override { return true; }
  void turn_keys(const View& keys, std::span<const int32_t> positions, Context& context) const override {
    const RopeScaling scaling = options_.rope.scaling;
    if (scaling == RopeScaling::kDynamicNtk || scaling == RopeScaling::kLongRope)
      throw Error(ErrorKind::kUnsupported, op(), "scaling", "", "must not depend on the text's length in a model");
    if (rope_keeps_unturned(options_)) return;
    std::optional<RopeAngles> own;
    const RopeAngles& angles = angles_ ? *angles_ : own.emplace(rope_table(options_.rope, keys.shape[3], 1));
    std::vector<int32_t> at;
    for (int64_t b = 0; b < keys.shape[0]; ++b) at.insert(at.end(), positions.begin(), positions.end());
    rope_rotate(keys, dense_view(at.data(), DType::kI32, {keys.shape[0], static_cast<int64_t>(positions.size())}),
                angles, options_.rope.interleaved, keys, context);
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
  norms.keys += 512;  // the sinks may be a partial of their own
  const double magnitude = rope_table(exact::rope_options(spec), norms.d, 1).magnitude;
  norms.query *= std::max(1.0, magnitude);
  norms.key *= std::max(1.0, magnitude);
  const bound::SoftmaxNorms scores = exact::with_scores(norms, 0, exact::rotary_error(norms));
  if (output == "out" || output == "lse") return softmax_bound(scores, in, output);
  return exact::rotary_gradient(scores, in, magnitude, output);
}

std::unique_ptr<Component> make(const Spec& spec) {
  return std::make_unique<RopeMechanism>(spec.name == kStreaming ? kStreaming : "rope", options_from(spec));
}

std::unique_ptr<Operator> definition(const Spec& spec) {
  return make_rope_reference(options_from(spec));
}

int64_t axis(std::string_view name, const Spec& spec, const Sizes& sizes) {
  if (name != "Pairs") return -1;
  const int64_t dims = exact::rope_options(spec).dims;
  return (dims == 0 ? sizes.d : dims) / 2;
}

std::string_view refuses(const Spec& spec, const Sizes& sizes) {
  return exact::rope_refuses(exact::rope_options(spec), sizes.d);
}

constexpr std::string_view kCascade =
    "x[i,d] = turn(q[i,d])\n"
    "y[j,d] = turn(k[j,d])\n"
    "s[i,j] = x[i,d] * y[j,d]\n" ATTEND_CASCADE_OF_SCORES;

constexpr Entry kRope = {
    .kind = Kind::kMechanism,
    .name = "rope",
    .room = "exact",
    .equation =
        "w[i,.] = softmax over visible j of scale * (R(i) q[i]).(R(j) k[j])\n"
        "R(p) turns pair n of a head by p f[n],  f[n] = base^(-2n / dims), stretched by `scaling`\n"
        "positions=cache: R(min(i, window + sinks - 1)) q[i] for the sinks, j < sinks;  without a window i and j are\n"
        "slots of a store's keys",
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
        "distributions; in a model, policies with a base each joined by '|'. With positions=cache and no window, keys "
        "that a retention leaves are stored unturned and turned to their slots by each call, at a cost of a rotation a "
        "key: distances never exceed what is held. Scalings dynamic and longrope depend on "
        "the text's length so far, so bits do too.",
    .make = make,
    .reference = definition,
    .bound = rope_bound,
    .axis = axis,
    .cascade = kCascade,
    .passes = 2,
    .refuses = refuses,
};

constexpr Entry kStreamingEntry = {
    .kind = Kind::kMechanism,
    .name = kStreaming,
    .room = "exact",
    .equation =
        "w[i,.] = softmax over j with i - j < window or j < sinks of scale * (R(x) q[i]).(R(j) k[j])\n"
        "x = i in the window, min(i, window + sinks - 1) for the sinks, j < sinks;  R as in rope",
    .summary = "a window and sinks with positions inside the cache: reads on without end",
    .options = kStreamingOptions,
    .in = kIn,
    .out = kOut,
    .papers = kStreamingPapers,
    .traits = {.exact_for = "every input; equal to rotary attention up to window + sinks tokens",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny,
               .gradients = kGradients},
    .notes =
        "rope:positions=cache under the paper's name. A text of up to window + sinks tokens is rope's; keys are stored "
        "turned once, at their positions in the text, and the query is turned once for the window and once for the "
        "sinks. In a model keys outside window and sinks are freed, and distances never exceed window + sinks - 1.",
    .make = make,
    .reference = definition,
    .bound = rope_bound,
    .axis = axis,
    .cascade = kCascade,
    .passes = 2,
    .refuses = refuses,
};

}  // namespace

void register_rope(Registry& registry) {
  registry.add(kRope);
  registry.add(kStreamingEntry);
}

}  // namespace attend
