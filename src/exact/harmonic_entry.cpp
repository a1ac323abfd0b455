// The registry's entry for harmonic.
#include "attend/exact/harmonic.h"

#include <optional>

#include "attend/exact/attention_operator.h"
#include "attend/exact/divided_frequencies.h"
#include "attend/reference/harmonic.h"
#include "exact/cascades.h"
#include "exact/entries.h"
#include "exact/rope_spec.h"
#include "exact/score_bound.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {
    option::kCausal,
    option::kScale,
    {"added", "", "takes the series' sum off the score instead of dividing by its term", "false", OptionType::kFlag, 0,
     0},
    exact::kDims,
    exact::kBase,
    exact::kInterleaved,
};
constexpr Port kIn[] = {
    port::kQ,
    {"k", "B Hkv Tk D", "f32 f16 bf16", true, "keys, unrotated, at positions 0, 1, ..; or a store's key views"},
    port::kV,
    port::kKvLens,
    port::kQPositions,
    {"slopes", "Hq", "f32", false, "factor of the distance, or of the series; absent: 1", 0, 1},
};
constexpr Port kOut[] = {port::kOut, port::kLse};
constexpr Paper kPapers[] = {
    {"The Nature of Mathematical Modeling and Probabilistic Optimization Engineering in Generative AI", "2410.18441",
     "237"},
};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"},
                           kGradients[] = {"q", "k", "v"};

HarmonicOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"),
          .scale = spec.real("scale"),
          .added = spec.flag("added"),
          .rope = exact::rope_options(spec)};
}

class Harmonic : public AttentionOperator, public DividesFrequencies {
 public:
  explicit Harmonic(const HarmonicOptions& options) : AttentionOperator("harmonic", kIn, kOut), options_(options) {
    // A model says how many elements turn; then the angles are made once.
    if (options.rope.dims > 0 && exact::rope_refuses(options.rope, options.rope.dims).empty())
      angles_.emplace(rope_table(options.rope, options.rope.dims, 1));
  }

  void backward(const Tensors& in, const Tensors& out, const Tensors& grad_out, const Tensors& grad_in,
                Context& context) const override {
    harmonic_attention_backward(inputs(in, 0), array(in, "slopes"), options_, {array(out, "out"), array(out, "lse")},
                                {array(grad_out, "out"), array(grad_out, "lse")},
                                {array(grad_in, "q"), array(grad_in, "k"), array(grad_in, "v")}, context,
                                angles_ ? &*angles_ : nullptr);
  }

  void divide_frequencies(std::span<const float> divisors) override {
    if (!angles_) exact::refuse_divisors(op());
    angles_.emplace(exact::divided_table(options_.rope, divisors));
  }

  bool turns() const override { return true; }
  void turn_keys(const View& keys, std::span<const int32_t> positions, Context& context) const override {
    std::vector<int32_t> at;
    for (int64_t b = 0; b < keys.shape[0]; ++b) at.insert(at.end(), positions.begin(), positions.end());
    const View rows = dense_view(at.data(), DType::kI32, {keys.shape[0], static_cast<int64_t>(positions.size())});
    if (angles_) return rope_rotate(keys, rows, *angles_, options_.rope.interleaved, keys, context);
    rope_rotate(keys, rows, RopeAngles(rope_table(options_.rope, keys.shape[3], 1)), options_.rope.interleaved, keys,
                context);
  }

 protected:
  void attend(const Qkv& qkv, const Tensors& in, const AttnOut& out, Context& context) const override {
    harmonic_attention(qkv, array(in, "slopes"), options_, out, context, angles_ ? &*angles_ : nullptr);
  }

 private:
  HarmonicOptions options_;
  std::optional<RopeAngles> angles_;
};

// What falls more than twice the largest dot product and 104 below the nearest key has a weight of 0 in f32, so that
// errors of larger falls don't count.
double harmonic_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  const bound::SoftmaxNorms norms = softmax_norms(spec, in);
  const double score = norms.scale * norms.query * norms.key, turned = exact::rotary_error(norms);
  double added = 0, error = turned + 4 * bound::kEpsilon * score;
  if (spec.flag("added")) {
    const View slopes = array(in, "slopes", "bound");
    const double slope = slopes.data ? exact::largest(slopes) : 1;
    const exact::Reach reach = exact::reach_of(in, spec.flag("causal"));
    auto above = [&](double d) { return slope * (1 + std::log(1 + d)); };  // H(d) <= 1 + ln d
    added = std::min(above(reach.farthest), above(reach.nearest) + 2 * score + 104);
    error = turned + bound::kEpsilon * (7 * added + 36 * slope);
  }
  const bound::SoftmaxNorms scores = exact::with_scores(norms, added, error);
  if (output == "out" || output == "lse") return softmax_bound(scores, in, output);
  // A factor is at most 1 and errs by 4 epsilon, which is well within what rotating adds.
  return exact::rotary_gradient(scores, in, 1, output);
}

constexpr Entry kEntry = {
    .kind = Kind::kMechanism,
    .name = "harmonic",
    .room = "exact",
    .equation =
        "w[i,.] = softmax over visible j of s / (1 + m[h] |i - j|),  s = scale * (R(i) q[i]).(R(j) k[j])\n"
        "added: s - m[h] H(|i - j|),  H(d) = 1 + 1/2 + .. + 1/d",
    .summary = "rotary positions times a harmonic series over distances, in ALiBi's manner",
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
        "237: the abstract says a factored combination of RoPE and ALiBi with a harmonic series; the paper's equations "
        "were not at hand. The default reads it as a factor of the score, added=true as a sum. Its blocks by chance "
        "are "
        "the mechanism prflash; its staircase quantisation of the cache (SAQ) is not here yet. Slopes have no "
        "gradient.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return std::make_unique<Harmonic>(options_from(spec));
    },
    .reference = [](const Spec& spec) { return make_harmonic_reference(options_from(spec)); },
    .bound = harmonic_bound,
    .cascade =
        "x[i,d] = turn(q[i,d])\n"
        "y[j,d] = turn(k[j,d])\n"
        "s[i,j] = x[i,d] * y[j,d] * f[i,j]\n" ATTEND_CASCADE_OF_SCORES,
    .passes = 2,
    .refuses = [](const Spec& spec,
                  const Sizes& sizes) { return exact::rope_refuses(exact::rope_options(spec), sizes.d); },
};

}  // namespace

void register_harmonic(Registry& registry) {
  registry.add(kEntry);
}

}  // namespace attend
