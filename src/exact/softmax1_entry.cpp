// The registry's entry for softmax1.
#include "attend/exact/softmax1.h"
#include "attend/reference/softmax1.h"
#include "exact/score_entries.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {option::kCausal, option::kScale};
constexpr Port kIn[] = {port::kQ, port::kK, port::kV, port::kKvLens, port::kQPositions, port::kBias};
constexpr Port kOut[] = {port::kOut, port::kLse};
constexpr Paper kPapers[] = {{"Attention Is Off By One (Evan Miller, 2023)", "", ""}};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"},
                           kGradients[] = {"q", "k", "v", "bias"};

Softmax1Options options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"), .scale = spec.real("scale")};
}

class Softmax1 : public AttentionOperator {
 public:
  explicit Softmax1(const Softmax1Options& options) : AttentionOperator("softmax1", kIn, kOut), options_(options) {}

  void backward(const Tensors& in, const Tensors& out, const Tensors& grad_out, const Tensors& grad_in,
                Context& context) const override {
    const AttnGrad gradients{array(grad_in, "q"), array(grad_in, "k"), array(grad_in, "v"), array(grad_in, "bias")};
    softmax1_attention_backward(inputs(in, 0), options_, {array(out, "out"), array(out, "lse")},
                                {array(grad_out, "out"), array(grad_out, "lse")}, gradients, context);
  }

 protected:
  void attend(const Qkv& qkv, const Tensors&, const AttnOut& out, Context& context) const override {
    softmax1_attention(qkv, options_, out, context);
  }

 private:
  Softmax1Options options_;
};

double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  return softmax_bound(spec, in, output);
}

constexpr Entry kSoftmax1 = {
    .kind = Kind::kMechanism,
    .name = "softmax1",
    .room = "exact",
    .equation = "o[i] = sum over visible j of exp(s[i,j]) v[j] / (1 + sum of exp(s[i,.])),  s = scale * q[i].k[j]",
    .summary = "softmax attention with 1 more in the denominator",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny,
               .gradients = kGradients},
    .notes = "Softmax-off-by-one, a page on the web; also equation 2 of arXiv:2602.23057. It is a sink logit of 0.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return std::make_unique<Softmax1>(options_from(spec));
    },
    .reference = [](const Spec& spec) { return make_softmax1_reference(options_from(spec)); },
    .bound = error_bound,
    .cascade =
        "s[i,j] = q[i,d] * k[j,d]\n"
        "m[i] = max_j s[i,j]\n"
        "p[i,j] = exp(s[i,j] - m[i])\n"
        "t[i] = sum_j p[i,j]\n"
        "z[i] = t[i] + exp(0 - m[i])\n"
        "o[i,c] = sum_j p[i,j] / z[i] * v[j,c]",
    .passes = 1,
};

}  // namespace

void register_softmax1(Registry& registry) {
  registry.add(kSoftmax1);
}

}  // namespace attend
