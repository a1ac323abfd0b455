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
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"};

DifferentialOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"), .scale = spec.real("scale"), .lambda = spec.real("lambda")};
}

double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  if (output != "out") return std::numeric_limits<double>::quiet_NaN();
  const View v = array(in, "v", "differential"), given = array(in, "lambda", "differential");
  const bound::SoftmaxNorms signal = softmax_norms(spec, in),
                            noise = exact::norms_of(spec, array(in, "q_noise", "differential"),
                                                    array(in, "k_noise", "differential"), v);
  const double lambda = given.data ? exact::largest(given) : std::abs(spec.real("lambda"));
  return bound::softmax(signal) + lambda * bound::softmax(noise) + 3 * bound::kEpsilon * (1 + lambda) * signal.value;
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
    .traits = {.exact_for = "every input", .forms = kForms, .patterns = kPatterns, .same_bits = SameBits::kAny},
    .notes =
        "ratio = 1 is the Differential Transformer, above it Grouped Differential Attention. The headwise "
        "normalisation that follows is the layer's. Forward only.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "differential", kIn, kOut,
          [o = options_from(spec), ratio = spec.integer("ratio")](const Qkv& qkv, const Tensors& in, const AttnOut& out,
                                                                  Context& context) {
            const View noise = array(in, "q_noise", "differential");
            if (noise.rank == 4 && qkv.q.rank == 4 && noise.shape[1] * ratio != qkv.q.shape[1])
              throw Error(ErrorKind::kArgument, "differential", "q_noise", to_string(noise),
                          "must have Hq / ratio heads");
            differential_attention({.signal = qkv,
                                    .q_noise = noise,
                                    .k_noise = array(in, "k_noise", "differential"),
                                    .lambda = array(in, "lambda", "differential")},
                                   o, out.out, context);
          });
    },
    .reference = [](const Spec& spec) { return make_differential_reference(options_from(spec)); },
    .bound = error_bound,
    .axis = [](std::string_view name, const Spec& spec, const Sizes& sizes) -> int64_t {
      return name == "Hn" ? sizes.hq / spec.integer("ratio") : -1;
    },
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
