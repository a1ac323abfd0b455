#include "attend/exact/attention_operator.h"
#include "mechanism/alibi.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {option::kCausal};
constexpr Port kIn[] = {port::kQ, port::kK, port::kV};
constexpr Port kOut[] = {port::kOut, port::kLse};
constexpr Paper kPapers[] = {
    {"Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation", "2108.12409", ""},
};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "grouped"};

class Alibi : public AttentionOperator {
 public:
  explicit Alibi(const AlibiOptions& options) : AttentionOperator("alibi", kIn, kOut), options_(options) {}

 protected:
  void attend(const Qkv& qkv, const Tensors&, const AttnOut& out, Context& context) const override {
    alibi_attention(qkv, options_, out, context);
  }

 private:
  AlibiOptions options_;
};

// Slopes are at most 1: the bias reaches the longest distance.
double bound_of(const Spec& spec, const Tensors& in, std::string_view output) {
  bound::SoftmaxNorms norms = softmax_norms(spec, in);
  norms.bias = static_cast<double>(norms.keys + array(in, "q", "bound").shape[2]);
  return output == "lse" ? bound::softmax_lse(norms) : bound::softmax(norms);
}

constexpr Entry kAlibi = {
    .kind = Kind::kMechanism,
    .name = "alibi",
    .room = "exact",
    .equation = "w[i,.] = softmax over visible j of scale * q[i].k[j] - m[h] |i - j|,  m[h] = 2^(-8 (h + 1) / Hq)",
    .summary = "softmax attention with linear biases",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input", .forms = kForms, .patterns = kPatterns, .same_bits = SameBits::kAny},
    .notes = "",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return std::make_unique<Alibi>(AlibiOptions{.causal = spec.flag("causal")});
    },
    .reference = [](const Spec& spec) { return make_alibi_reference({.causal = spec.flag("causal")}); },
    .bound = bound_of,
};

}  // namespace

void register_example(Registry& registry) {
  registry.add(kAlibi);
}

}  // namespace attend
