// The registry's entry for differential.
#include "attend/exact/differential.h"
#include "attend/reference/differential.h"
#include "attend/tensor/error.h"
#include "exact/score_entries.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {
    option::kCausal,
    option::kScale,
    {"lambda", "", "share of the noise where port lambda is absent", "0.8", OptionType::kReal, -1e6, 1e6},
    {"ratio", "", "signal heads to a noise head, Hq / Hn", "1", OptionType::kInteger, 1, 1e6}};
constexpr Port kIn[] = {port::kQ,
                        port::kK,
                        port::kV,
                        {"q_noise", "B Hn Tq D", "f32", true, "queries of the noise heads"},
                        {"k_noise", "B Hkv Tk D", "f32 f16 bf16", true, "keys of the noise heads"},
                        {"lambda", "B Hq Tq", "f32", false, "share of the noise", 0, 1},
                        port::kKvLens,
                        port::kQPositions};
constexpr Port kOut[] = {port::kOut};
constexpr Paper kPapers[] = {{"Differential Transformer", "2410.05258", ""},
                             {"Grouped Differential Attention", "2510.06949", "279"}};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"},
                           kGradients[] = {"q", "k", "v", "q_noise", "k_noise", "lambda"};

DifferentialOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"), .scale = spec.real("scale"), .lambda = spec.real("lambda")};
}

class Differential : public AttentionOperator {
 public:
  explicit Differential(const Spec& spec)
      : AttentionOperator("differential", kIn, kOut), options_(options_from(spec)), ratio_(spec.integer("ratio")) {}

  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context& context) const override {
    differential_attention_backward(arguments(inputs(in, 0), in), options_, array(grad_out, "out"),
                                    {.q = array(grad_in, "q"),
                                     .k = array(grad_in, "k"),
                                     .v = array(grad_in, "v"),
                                     .q_noise = array(grad_in, "q_noise"),
                                     .k_noise = array(grad_in, "k_noise"),
                                     .lambda = array(grad_in, "lambda")},
                                    context);
  }

 protected:
  void attend(const Qkv& qkv, const Tensors& in, const AttnOut& out, Context& context) const override {
    differential_attention(arguments(qkv, in), options_, out.out, context);
  }

 private:
  DifferentialIn arguments(const Qkv& qkv, const Tensors& in) const {
    const View noise = array(in, "q_noise");
    if (noise.rank == 4 && qkv.q.rank == 4 && noise.shape[1] * ratio_ != qkv.q.shape[1])
      throw Error(ErrorKind::kArgument, "differential", "q_noise", to_string(noise), "must have Hq / ratio heads");
    return {.signal = qkv, .q_noise = noise, .k_noise = array(in, "k_noise"), .lambda = array(in, "lambda")};
  }

  DifferentialOptions options_;
  int64_t ratio_;
};

// The noise's gradient of out is summed over a group, with 2 roundings a head; lambda's is a dot product in double of
// the noise's out.
double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  const View v = array(in, "v", "differential"), given = array(in, "lambda", "differential"),
             q_noise = array(in, "q_noise", "differential"), k_noise = array(in, "k_noise", "differential");
  const bound::SoftmaxNorms signal = softmax_norms(spec, in), noise = exact::norms_of(spec, q_noise, k_noise, v);
  const double lambda = given.data ? exact::largest(given) : std::abs(spec.real("lambda"));
  if (output == "out")
    return bound::softmax(signal) + lambda * bound::softmax(noise) + 3 * bound::kEpsilon * (1 + lambda) * signal.value;
  const bound::SoftmaxGradientNorms of_signal = gradient_norms(signal, in);
  if (output == "grad q") return bound::softmax_dq(of_signal);
  if (output == "grad k") return bound::softmax_dk(of_signal);
  const double length = of_signal.d_out, width = std::sqrt(static_cast<double>(v.shape[3]));
  if (output == "grad lambda")
    return length * (width * bound::softmax(noise) + 2 * bound::kEpsilon * of_signal.value) + 1e-37;
  const int64_t ratio = spec.integer("ratio");
  bound::SoftmaxGradientNorms of_noise = gradient_norms(noise, {{"q", q_noise}, {"k", k_noise}, {"v", v}});
  of_noise.d_out = static_cast<double>(ratio) * lambda * length;
  const double summed = bound::gamma(2 * ratio), slope = bound::softmax_slope(of_noise) * summed,
               rows = static_cast<double>(of_noise.rows);
  if (output == "grad q_noise") return bound::softmax_dq(of_noise) + noise.scale * of_noise.k_max * slope;
  if (output == "grad k_noise") return bound::softmax_dk(of_noise) + rows * noise.scale * of_noise.q_max * slope;
  const double terms = static_cast<double>(of_signal.rows) * length + rows * of_noise.d_out;
  return bound::softmax_dv(of_signal) + bound::softmax_dv(of_noise) + (summed + 4 * bound::kEpsilon) * terms;
}

constexpr Entry kDifferential = {
    .kind = Kind::kMechanism,
    .name = "differential",
    .room = "exact",
    .equation =
        "o[h,i] = sum over visible j of (a[h,i,j] - lambda n[h / ratio,i,j]) v[j],  a = softmax of scale * q.k[j],  n "
        "= softmax of scale * q_noise.k_noise[j]",
    .summary = "the difference of two softmax attentions, noise heads shared by groups",
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
        "ratio = 1 is the Differential Transformer, above it Grouped Differential Attention. The headwise "
        "normalisation that follows is the layer's.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> { return std::make_unique<Differential>(spec); },
    .reference = [](const Spec& spec) { return make_differential_reference(options_from(spec)); },
    .bound = error_bound,
    .axis = [](std::string_view name, const Spec& spec, const Sizes& sizes) -> int64_t {
      return name == "Hn" ? sizes.hq / spec.integer("ratio") : -1;
    },
    .cascade =
        "s[i,j] = q[i,d] * k[j,d]\n"
        "m[i] = max_j s[i,j]\n"
        "p[i,j] = exp(s[i,j] - m[i])\n"
        "z[i] = sum_j p[i,j]\n"
        "a[i,c] = sum_j p[i,j] / z[i] * v[j,c]\n"
        "s'[i,j] = q_noise[i,d] * k_noise[j,d]\n"
        "m'[i] = max_j s'[i,j]\n"
        "p'[i,j] = exp(s'[i,j] - m'[i])\n"
        "z'[i] = sum_j p'[i,j]\n"
        "n[i,c] = sum_j p'[i,j] / z'[i] * v[j,c]\n"
        "o[i,c] = a[i,c] - lambda[i] * n[i,c]",
    .passes = 2,
    .refuses = [](const Spec& spec, const Sizes& sizes) -> std::string_view {
      const int64_t ratio = spec.integer("ratio");
      return sizes.hq % ratio == 0 && sizes.hq / ratio % sizes.hkv == 0 ? "" : "has no whole groups of heads";
    },
};

}  // namespace

void register_differential(Registry& registry) {
  registry.add(kDifferential);
}

}  // namespace attend
