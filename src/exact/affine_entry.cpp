// The registry's entry for affine.
#include "attend/exact/affine.h"
#include "attend/reference/affine.h"
#include "exact/score_entries.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {
    option::kCausal, option::kScale, {"average", "", "moving average of alpha", "1", OptionType::kReal, -1e6, 1e6}};
constexpr Port kIn[] = {port::kQ,      port::kK,
                        port::kV,      {"alpha", "B Hq Tq", "f32", true, "scale of the weights", 0, 1.5},
                        port::kKvLens, port::kQPositions};
constexpr Port kOut[] = {port::kOut};
constexpr Paper kPapers[] = {
    {"Affine-Scaled Attention: Towards Flexible and Stable Transformer Attention", "2602.23057", "289"}};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"};

AffineOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"), .scale = spec.real("scale"), .average = spec.real("average")};
}

double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  if (output != "out") return std::numeric_limits<double>::quiet_NaN();
  const bound::SoftmaxNorms n = softmax_norms(spec, in);
  const double alpha = exact::largest(array(in, "alpha", "affine")), average = std::abs(spec.real("average"));
  return alpha * bound::softmax(n) + 6 * bound::kEpsilon * n.value * (2 * alpha + average) + 1e-37;
}

constexpr Entry kAffine = {
    .kind = Kind::kMechanism,
    .name = "affine",
    .room = "exact",
    .equation =
        "o[i] = sum over visible j of (alpha[i] w[i,j] + (average - alpha[i]) / n) v[j],  w[i,.] = softmax over "
        "visible j of scale * q[i].k[j]\n"
        "n: keys that query i sees",
    .summary = "softmax weights scaled and shifted by amounts that depend on the query",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input", .forms = kForms, .patterns = kPatterns, .same_bits = SameBits::kAny},
    .notes =
        "n is the number of keys that the query sees, where the paper takes the length of the text. The gate that "
        "makes alpha is the layer's. Forward only.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "affine", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors& in, const AttnOut& out, Context& context) {
            affine_attention(qkv, array(in, "alpha", "affine"), o, out.out, context);
          });
    },
    .reference = [](const Spec& spec) { return make_affine_reference(options_from(spec)); },
    .bound = error_bound,
};

}  // namespace

void register_affine(Registry& registry) {
  registry.add(kAffine);
}

}  // namespace attend
