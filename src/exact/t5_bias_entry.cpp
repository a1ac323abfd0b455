#include "attend/exact/attention_operator.h"
#include "attend/exact/t5_bias.h"
#include "attend/reference/t5_bias.h"
#include "exact/cascades.h"
#include "exact/entries.h"
#include "exact/score_bound.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {
    option::kCausal,
    option::kScale,
    {"max_distance", "tokens", "from here on all distances share the last bucket", "128", OptionType::kInteger, 1,
     1 << 20},
};
constexpr Port kIn[] = {
    port::kQ,
    port::kK,
    port::kV,
    port::kKvLens,
    port::kQPositions,
    {"table", "Buckets Hq", "f32", true, "bias of each bucket of distances and head; even unless causal"},
};
constexpr Port kOut[] = {port::kOut, port::kLse};
constexpr Paper kPapers[] = {
    {"Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", "1910.10683", ""},
};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"},
                           kGradients[] = {"q", "k", "v", "table"};

T5BiasOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"), .scale = spec.real("scale"), .max_distance = spec.integer("max_distance")};
}

class T5Bias : public AttentionOperator {
 public:
  explicit T5Bias(const T5BiasOptions& options) : AttentionOperator("t5-bias", kIn, kOut), options_(options) {}

  void backward(const Tensors& in, const Tensors& out, const Tensors& grad_out, const Tensors& grad_in,
                Context& context) const override {
    const T5BiasGrad gradients{{array(grad_in, "q"), array(grad_in, "k"), array(grad_in, "v")},
                               array(grad_in, "table")};
    t5_bias_attention_backward(inputs(in, 0), array(in, "table"), options_, {array(out, "out"), array(out, "lse")},
                               {array(grad_out, "out"), array(grad_out, "lse")}, gradients, context);
  }

 protected:
  void attend(const Qkv& qkv, const Tensors& in, const AttnOut& out, Context& context) const override {
    t5_bias_attention(qkv, array(in, "table"), options_, out, context);
  }

 private:
  T5BiasOptions options_;
};

constexpr Entry kEntry = {
    .kind = Kind::kMechanism,
    .name = "t5-bias",
    .room = "exact",
    .equation =
        "w[i,.] = softmax over visible j of scale * q[i].k[j] + table[bucket(j - i), h]\n"
        "bucket: one distance each up close, then by the logarithm up to max_distance",
    .summary = "a learned bias for each bucket of distances",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny,
               .gradients = kGradients},
    .notes = "T5 itself uses scale 1.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> { return std::make_unique<T5Bias>(options_from(spec)); },
    .reference = [](const Spec& spec) { return make_t5_bias_reference(options_from(spec)); },
    .bound =
        [](const Spec& spec, const Tensors& in, std::string_view output) {
          const bound::SoftmaxNorms norms =
              exact::with_scores(softmax_norms(spec, in), exact::largest(array(in, "table", "bound")), 0);
          return output == "grad table" ? exact::parameter_gradient(norms, in, 1, 0) : softmax_bound(norms, in, output);
        },
    .axis = [](std::string_view name, const Spec&, const Sizes&) -> int64_t { return name == "Buckets" ? 32 : -1; },
    .cascade = "s[i,j] = q[i,d] * k[j,d] + table[i,j]\n" ATTEND_CASCADE_OF_SCORES,
    .passes = 1,
};

}  // namespace

void register_t5_bias(Registry& registry) {
  registry.add(kEntry);
}

}  // namespace attend
