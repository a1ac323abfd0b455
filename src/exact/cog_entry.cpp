// The registry's entry for cog.
#include "attend/exact/cog.h"
#include "attend/reference/cog.h"
#include "exact/score_entries.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {option::kCausal, option::kScale};
constexpr Port kIn[] = {port::kQ, port::kK, port::kV, port::kKvLens, port::kQPositions};
constexpr Port kOut[] = {port::kOut, port::kLse};
constexpr Paper kPapers[] = {{"More Expressive Attention with Negative Weights", "2411.07176", "075"}};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"},
                           kGradients[] = {"q", "k", "v"};

CogOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"), .scale = spec.real("scale")};
}

class Cog : public AttentionOperator {
 public:
  explicit Cog(const CogOptions& options) : AttentionOperator("cog", kIn, kOut), options_(options) {}

  void backward(const Tensors& in, const Tensors& out, const Tensors& grad_out, const Tensors& grad_in,
                Context& context) const override {
    cog_attention_backward(inputs(in, 0), options_, {array(out, "out"), array(out, "lse")},
                           {array(grad_out, "out"), array(grad_out, "lse")},
                           {array(grad_in, "q"), array(grad_in, "k"), array(grad_in, "v")}, context);
  }

 protected:
  void attend(const Qkv& qkv, const Tensors&, const AttnOut& out, Context& context) const override {
    cog_attention(qkv, options_, out, context);
  }

 private:
  CogOptions options_;
};

// A score within its error of 0 may have either sign: its weight may be off by twice itself, which moves the row's
// output by that share of a value. Twice the largest sum of such weights.
double flipped_weight(const bound::SoftmaxNorms& n, const Spec& spec, const Tensors& in) {
  const double near = bound::softmax_score(n);
  double flipped = 0;
  exact::each_bound_row(in, spec.flag("causal"), [&](const exact::BoundRow& row, int64_t) {
    double sum = 0, doubtful = 0;
    for (double dot : row.dots) {
      sum += std::exp(std::min(700.0, n.scale * std::abs(dot)));
      if (n.scale * std::abs(dot) <= near) doubtful += 2;
    }
    if (doubtful > 0) flipped = std::max(flipped, doubtful / sum);
  });
  return flipped;
}

// Gradients: p (g - t mean) of a score's size p and sign t. A flipped sign moves it by p and the mean, and the mean of
// every score by what it moves the output; of v, the weight itself.
double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  const bound::SoftmaxNorms n = softmax_norms(spec, in);
  const double flipped = flipped_weight(n, spec, in);
  if (output == "lse") return bound::softmax_lse(n);
  if (output == "out") return bound::softmax(n) + n.value * flipped;
  const View q = array(in, "q", "bound"), k = array(in, "k", "bound"), v = array(in, "v", "bound"),
             d_out = array(in, "grad out", "bound"), d_lse = array(in, "grad lse", "bound");
  const double slope = 2 * exact::largest_row(d_out) * exact::largest_row(v) + exact::largest(d_lse);
  const double rows = static_cast<double>(q.shape[2] * (q.shape[1] / k.shape[1])), moved = 2 * flipped * slope;
  const double extra = output == "grad q"   ? n.scale * exact::largest(k) * moved
                       : output == "grad k" ? rows * n.scale * exact::largest(q) * moved
                                            : rows * flipped * exact::largest(d_out);
  return softmax_bound(spec, in, output) + extra;
}

constexpr Entry kCog = {
    .kind = Kind::kMechanism,
    .name = "cog",
    .room = "exact",
    .equation =
        "o[i] = sum over visible j of sign(s[i,j]) w[i,j] v[j],  w[i,.] = softmax over visible j of |s[i,j]|,  s = "
        "scale * q[i].k[j]",
    .summary = "attention with negative weights: a score gives its weight its sign",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny,
               .gradients = kGradients},
    .notes = "Gradients take signs as constants.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> { return std::make_unique<Cog>(options_from(spec)); },
    .reference = [](const Spec& spec) { return make_cog_reference(options_from(spec)); },
    .bound = error_bound,
    .cascade =
        "s[i,j] = q[i,d] * k[j,d]\n"
        "m[i] = max_j abs(s[i,j])\n"
        "p[i,j] = exp(abs(s[i,j]) - m[i])\n"
        "z[i] = sum_j p[i,j]\n"
        "o[i,c] = sum_j sign(s[i,j]) * p[i,j] / z[i] * v[j,c]",
    .passes = 1,
};

}  // namespace

void register_cog(Registry& registry) {
  registry.add(kCog);
}

}  // namespace attend
