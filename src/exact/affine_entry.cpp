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
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"},
                           kGradients[] = {"q", "k", "v", "alpha"};

AffineOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"), .scale = spec.real("scale"), .average = spec.real("average")};
}

class Affine : public AttentionOperator {
 public:
  explicit Affine(const AffineOptions& options) : AttentionOperator("affine", kIn, kOut), options_(options) {}

  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context& context) const override {
    const AffineGrad gradients{array(grad_in, "q"), array(grad_in, "k"), array(grad_in, "v"), array(grad_in, "alpha")};
    affine_attention_backward(inputs(in, 0), array(in, "alpha"), options_, array(grad_out, "out"), gradients, context);
  }

 protected:
  void attend(const Qkv& qkv, const Tensors& in, const AttnOut& out, Context& context) const override {
    affine_attention(qkv, array(in, "alpha"), options_, out.out, context);
  }

 private:
  AffineOptions options_;
};

// The softmax's gradients are those of alpha times the gradient of out, which rounds once; means are sums in double,
// alpha's a dot product in double of the softmax's out.
double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  const bound::SoftmaxNorms norms = softmax_norms(spec, in);
  const double alpha = exact::largest(array(in, "alpha", "affine")), average = std::abs(spec.real("average"));
  if (output == "out")
    return alpha * bound::softmax(norms) + 6 * bound::kEpsilon * norms.value * (2 * alpha + average) + 1e-37;
  bound::SoftmaxGradientNorms n = gradient_norms(norms, in);
  const double length = n.d_out, width = std::sqrt(static_cast<double>(n.dv)), rows = static_cast<double>(n.rows);
  if (output == "grad alpha") return length * (width * bound::softmax(norms) + 8 * bound::kEpsilon * n.value) + 1e-37;
  n.d_out = alpha * length;
  const double rounded = 2 * bound::kEpsilon * bound::softmax_slope(n);
  if (output == "grad q") return bound::softmax_dq(n) + norms.scale * n.k_max * rounded;
  if (output == "grad k") return bound::softmax_dk(n) + rows * norms.scale * n.q_max * rounded;
  return bound::softmax_dv(n) + 4 * bound::kEpsilon * rows * length * (2 * alpha + average);
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
    .traits = {.exact_for = "every input",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny,
               .gradients = kGradients},
    .notes =
        "n is the number of keys that the query sees, where the paper takes the length of the text. The gate that "
        "makes alpha is the layer's.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> { return std::make_unique<Affine>(options_from(spec)); },
    .reference = [](const Spec& spec) { return make_affine_reference(options_from(spec)); },
    .bound = error_bound,
    .cascade =
        "s[i,j] = q[i,d] * k[j,d]\n"
        "m[i] = max_j s[i,j]\n"
        "p[i,j] = exp(s[i,j] - m[i])\n"
        "z[i] = sum_j p[i,j]\n"
        "a[i,c] = sum_j p[i,j] / z[i] * v[j,c]\n"
        "u[i,c] = sum_j seen[i,j] * v[j,c]\n"
        "o[i,c] = alpha[i] * a[i,c] + rest[i] * u[i,c]",
    .passes = 2,
};

}  // namespace

void register_affine(Registry& registry) {
  registry.add(kAffine);
}

}  // namespace attend
