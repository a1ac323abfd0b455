// The registry's entry for lla.
#include "attend/exact/lla.h"
#include "attend/reference/lla.h"
#include "exact/score_entries.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {
    option::kCausal, option::kScale, {"ridge", "", "penalty of the slope", "10", OptionType::kReal, 0.01, 1e30}};
constexpr Port kIn[] = {port::kQ, port::kK, port::kV, port::kKvLens, port::kQPositions};
constexpr Port kOut[] = {port::kOut};
constexpr Paper kPapers[] = {
    {"Local Linear Attention: An Optimal Interpolation of Linear and Softmax Attention For Test-Time Regression",
     "2510.01450", "293"}};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"};

LlaOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"), .scale = spec.real("scale"), .ridge = spec.real("ridge")};
}

double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  if (output != "out") return std::numeric_limits<double>::quiet_NaN();
  const bound::SoftmaxNorms n = softmax_norms(spec, in);
  const double ridge = spec.real("ridge");
  double worst = 0;
  exact::each_bound_row(in, spec.flag("causal"), [&](const exact::BoundRow& row, int64_t d) {
    // Norms of what enters the equations of this row: z = k - q, m = mean of z.
    double query = 0, reach = 0, top = -1e300, sum = 0, mean = 0;
    for (double x : row.q) query += x * x;
    for (double dot : row.dots) top = std::max(top, n.scale * dot);
    std::vector<double> m(static_cast<size_t>(d), 0);
    for (size_t j = 0; j < row.keys.size(); ++j) {
      const double w = std::exp(n.scale * row.dots[j] - top);
      double norm = 0;
      for (int64_t c = 0; c < d; ++c) {
        norm += row.keys[j][c] * row.keys[j][c];
        m[static_cast<size_t>(c)] += w * (row.keys[j][c] - row.q[static_cast<size_t>(c)]);
      }
      sum += w;
      reach = std::max(reach, std::sqrt(norm) + std::sqrt(query));
    }
    for (double x : m) mean += x / sum * (x / sum);
    // rho = (M + ridge)^-1 m with M >= m m': |rho| <= 1 / sqrt(ridge), |rho| <= |m| / ridge, and the denominator
    // 1 - m' rho is at least ridge / (ridge + |m|^2).
    const double rho = std::min(1 / std::sqrt(ridge), std::sqrt(mean) / ridge);
    const double weight = 2 * bound::softmax_score(n) + 12 * bound::kEpsilon +
                          bound::gamma(static_cast<int64_t>(row.keys.size()) + d + 8);
    // The residual that CG sees and the true one part by a few roundings of the matrix a step.
    const double residual =
        1e-6 * std::sqrt(mean) + static_cast<double>(2 * d + 16) * bound::kEpsilon * (ridge + reach * reach) * rho;
    const double moved = (weight * (reach + reach * reach * rho) + residual) / ridge;
    const double gain = weight * (1 + rho * reach) + reach * moved;
    const double out = n.value * (1 + rho * reach) / (ridge / (ridge + mean));
    worst = std::max(worst, (n.value + out) * gain / (ridge / (ridge + mean)));
  });
  return worst + 1e-37;
}

constexpr Entry kLla = {
    .kind = Kind::kMechanism,
    .name = "lla",
    .room = "exact",
    .equation =
        "(o, S) = argmin of sum over visible j of w[j] |v[j] - o - S (k[j] - q)|^2 + ridge |S|^2,  w = softmax of "
        "scale * q.k[j]",
    .summary = "local linear attention: a plane through the values around a query",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input, up to the residual of conjugate gradients",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny},
    .notes = "Rows are solved by conjugate gradients to a relative residual of 1e-6. Forward only.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "lla", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors&, const AttnOut& out, Context& context) {
            lla_attention(qkv, o, out.out, context);
          });
    },
    .reference = [](const Spec& spec) { return make_lla_reference(options_from(spec)); },
    .bound = error_bound,
};

}  // namespace

void register_lla(Registry& registry) {
  registry.add(kLla);
}

}  // namespace attend
