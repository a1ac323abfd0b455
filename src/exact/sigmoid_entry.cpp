// The registry's entry for sigmoid.
#include "attend/exact/sigmoid.h"
#include "attend/reference/sigmoid.h"
#include "exact/score_entries.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {
    option::kCausal, option::kScale, {"bias", "", "added to -ln n", "0", OptionType::kReal, -1e4, 1e4}};
constexpr Port kIn[] = {port::kQ, port::kK, port::kV, port::kKvLens, port::kQPositions, port::kBias};
constexpr Port kOut[] = {port::kOut};
constexpr Paper kPapers[] = {{"Theory, Analysis, and Best Practices for Sigmoid Self-Attention", "2409.04431", ""}};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"},
                           kGradients[] = {"q", "k", "v", "bias"};

SigmoidOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"), .scale = spec.real("scale"), .bias = spec.real("bias")};
}

class Sigmoid : public AttentionOperator {
 public:
  explicit Sigmoid(const SigmoidOptions& options) : AttentionOperator("sigmoid", kIn, kOut), options_(options) {}

  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context& context) const override {
    sigmoid_attention_backward(inputs(in, 0), options_, array(grad_out, "out"),
                               {array(grad_in, "q"), array(grad_in, "k"), array(grad_in, "v"), array(grad_in, "bias")},
                               context);
  }

 protected:
  void attend(const Qkv& qkv, const Tensors&, const AttnOut& out, Context& context) const override {
    sigmoid_attention(qkv, options_, out.out, context);
  }

 private:
  SigmoidOptions options_;
};

double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  const bound::SoftmaxNorms n = softmax_norms(spec, in);
  const double score = n.scale * n.query * n.key + n.bias, bias = spec.real("bias"),
               shift = std::abs(bias) + std::log(static_cast<double>(n.keys) + 1);
  // A weight is at most 1 and at most e^(score + bias) / n; its relative error is at most that of the score, with the
  // shift, and 8 epsilon.
  const double weights = std::min(static_cast<double>(n.keys), std::exp(std::min(700.0, score + bias)));
  const double relative =
      std::expm1(bound::softmax_score(n) + bound::kEpsilon * (score + 2 * shift)) + 12 * bound::kEpsilon;
  if (output == "out") return n.value * weights * (relative + exact::sum_error(n.keys)) + 1e-37;
  // Gradients of scores: at most a weight times |d_out| |v|, with the error of the weight twice (w (1 - w) moves by no
  // more than w) and of the dot product of d_out and v.
  const bound::SoftmaxGradientNorms g = gradient_norms(n, in);
  const double slope = g.d_out * g.value, error = relative + 6 * bound::kEpsilon + bound::gamma(g.dv + 2),
               rows = static_cast<double>(g.rows);
  if (output == "grad q") return n.scale * g.k_max * weights * slope * (error + bound::gamma(n.keys + 4)) + 1e-37;
  if (output == "grad k") return n.scale * g.q_max * rows * slope * (error + bound::gamma(g.rows + 4)) + 1e-37;
  if (output == "grad v") return rows * g.d_out * (relative + bound::gamma(g.rows + 4)) + 1e-37;
  const int64_t terms = exact::bias_terms(in);
  return static_cast<double>(terms) * slope * (error + bound::gamma(terms + 4)) + 1e-37;
}

constexpr Entry kSigmoid = {
    .kind = Kind::kMechanism,
    .name = "sigmoid",
    .room = "exact",
    .equation =
        "o[i] = sum over visible j of sigmoid(scale * q[i].k[j] + bias - ln n) v[j],  n: keys that query i sees",
    .summary = "attention whose keys are weighted one by one by a sigmoid",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny,
               .gradients = kGradients},
    .notes = "n is the number of keys that the query sees, where the paper takes the length of the text.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return std::make_unique<Sigmoid>(options_from(spec));
    },
    .reference = [](const Spec& spec) { return make_sigmoid_reference(options_from(spec)); },
    .bound = error_bound,
    .cascade =
        "s[i,j] = q[i,d] * k[j,d]\n"
        "o[i,c] = sum_j sigmoid(s[i,j] - n[i]) * v[j,c]",
    .passes = 1,
};

}  // namespace

void register_sigmoid(Registry& registry) {
  registry.add(kSigmoid);
}

}  // namespace attend
