// The registry's entry for lssar.
#include "attend/exact/lssar.h"
#include "attend/reference/lssar.h"
#include "exact/score_entries.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {option::kCausal,
                               {"scale", "", "of the cosine; 0 means ln D * ln n", "0", OptionType::kReal, -1e4, 1e4},
                               {"power", "", "of the re-weighting; 0 means none", "15", OptionType::kInteger, 0, 63}};
constexpr Port kIn[] = {port::kQ, port::kK, port::kV, port::kKvLens, port::kQPositions};
constexpr Port kOut[] = {port::kOut};
constexpr Paper kPapers[] = {
    {"Softplus Attention with Re-weighting Boosts Length Extrapolation in Large Language Models", "2501.13428", "231"}};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"};

LssarOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"), .scale = spec.real("scale"), .power = spec.integer("power")};
}

double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  if (output != "out") return std::numeric_limits<double>::quiet_NaN();
  const bound::SoftmaxNorms norms = softmax_norms(spec, in);
  const double power = static_cast<double>(spec.integer("power")), given = spec.real("scale");
  double worst = 0;
  exact::each_bound_row(in, spec.flag("causal"), [&](const exact::BoundRow& row, int64_t d) {
    const double n = static_cast<double>(row.dots.size());
    const double scale = given == 0 ? std::log(static_cast<double>(d)) * std::log(n) : given;
    auto norm = [&](const double* x) {
      double sum = 0;
      for (int64_t c = 0; c < d; ++c) sum += x[c] * x[c];
      return std::sqrt(sum);
    };
    std::vector<double> a;
    double sum = 0, largest = 0, shifted = 0;
    for (size_t j = 0; j < row.dots.size(); ++j) {
      const double size = norm(row.q.data()) * norm(row.keys[j]);
      a.push_back(std::log1p(std::exp(scale * (size == 0 ? 0 : row.dots[j] / size))));
      sum += a.back();
    }
    for (double x : a) {
      largest = std::max(largest, x / sum);
      shifted = std::max(shifted, n * x / sum - (n > 3 ? 1 : 0));
    }
    // d ln softplus is at most d x: twice the argument's error (dot product, norms, scale), that of softplus and sum.
    const double each = 2 * std::abs(scale) * (bound::gamma(d) + 8 * bound::kEpsilon) + 40 * bound::kEpsilon +
                        bound::gamma(row.dots.size() / 16 + 8);
    double error = each;
    if (power > 0) {
      // sum of x^(p - 1) is at most n^(1 / p) / largest x times that of x^p.
      const double moved = n * largest * each + 2 * bound::kEpsilon;
      error = shifted > 0 ? 2 * power * std::pow(n, 1 / power) * moved / shifted + 20 * bound::kEpsilon : 2;
    }
    worst = std::max(worst, std::min(2.0, error));
  });
  return norms.value * (worst + bound::gamma(norms.keys + 2)) + 1e-37;
}

constexpr Entry kLssar = {
    .kind = Kind::kMechanism,
    .name = "lssar",
    .room = "exact",
    .equation =
        "a[j] = softplus(ln D ln n cos(q[i], k[j])) / sum,  w[j] = max(0, n a[j] - (n > 3))^power / sum,  o[i] = sum "
        "over visible j of w[j] v[j]\n"
        "n: keys that query i sees",
    .summary = "softplus attention, scaled by length and sharpened by a power",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input", .forms = kForms, .patterns = kPatterns, .same_bits = SameBits::kAny},
    .notes = "The mechanism; that a trained model extrapolates 16 times its length needs training. Forward only.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "lssar", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors&, const AttnOut& out, Context& context) {
            lssar_attention(qkv, o, out.out, context);
          });
    },
    .reference = [](const Spec& spec) { return make_lssar_reference(options_from(spec)); },
    .bound = error_bound,
};

}  // namespace

void register_lssar(Registry& registry) {
  registry.add(kLssar);
}

}  // namespace attend
