// The registry's entry for cat-geometry.
#include "attend/exact/cat_geometry.h"
#include "attend/reference/cat_geometry.h"
#include "exact/score_entries.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {
    option::kCausal,
    option::kScale,
    {"beta", "", "multiplies the distances; 0 means the scale", "0", OptionType::kReal, 0, 1e30},
    {"hyperbolic", "", "curvature of the hyperbolic branch, its sign left out; 0 is flat", "1", OptionType::kReal, 0,
     1e12},
    {"spherical", "", "curvature of the spherical branch; 0 is flat", "1", OptionType::kReal, 0, 1e12},
    {"squared", "", "half the squared distances instead of the distances", "false", OptionType::kFlag, 0, 0},
    {"directions", "", "the spherical branch takes directions alone, not lengths", "false", OptionType::kFlag, 0, 0},
};
constexpr Port kIn[] = {
    port::kQ,
    port::kK,
    port::kV,
    port::kKvLens,
    port::kQPositions,
    {"routing", "B Hq Tq 3", "f32", false,
     "weights of the Euclidean, hyperbolic and spherical branch; axes of 1 are repeated; absent: a third each", 0, 1},
};
constexpr Port kOut[] = {port::kOut};
constexpr Paper kPapers[] = {
    {"CAT: Curvature-Adaptive Transformers for Geometry-Aware Learning", "2510.01634", "278"},
    {"Hyperbolic Attention Networks", "1805.09786", ""},
    {"Fully Hyperbolic Neural Networks", "2105.14686", ""},
};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"};

CatGeometryOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"),
          .scale = spec.real("scale"),
          .beta = spec.real("beta"),
          .hyperbolic = spec.real("hyperbolic"),
          .spherical = spec.real("spherical"),
          .squared = spec.flag("squared"),
          .directions = spec.flag("directions")};
}

// What the kernel's dot product of two lifted vectors is, and the sum of the magnitudes of its terms.
struct Product {
  double value, magnitude;
};

Product lifted_product(double xx, double yy, double xy, double c, bool sphere, bool directions) {
  const double lengths = std::sqrt(xx * yy);
  if (sphere && directions) return {1 - (lengths == 0 ? 0 : xy / lengths), 2};
  const double x = std::sqrt(1 + c * xx), y = std::sqrt(1 + c * yy), a = xx / (1 + x), b = yy / (1 + y);
  if (sphere) return {(a + b / y - xy / y) / x, (a + b / y + lengths / y) / x};
  return {a * y + b - xy, a * y + b + lengths};
}

// The score is monotone in the product: it errs most at the ends of the product's error. That is the error of a sum of
// D + 2 terms whose factors are rounded once, and 4 epsilon of the product for the curvature; roots, logarithm or arc
// sine and what multiplies them add 24 epsilon of the score.
double curved_bound(const Spec& spec, const Tensors& in, bool sphere) {
  bound::SoftmaxNorms n = softmax_norms(spec, in);
  const CatGeometryOptions o = options_from(spec);
  const double beta = o.beta == 0 ? n.scale : o.beta, c = sphere ? o.spherical : o.hyperbolic;
  const double unit = sphere && o.directions ? 1 : c;
  auto score = [&](double s) {
    s = std::max(0.0, s);
    double d = std::sqrt(2 * s);
    if (c > 0 && sphere) d = 2 * std::asin(std::sqrt(std::min(1.0, unit * s / 2))) / std::sqrt(c);
    if (c > 0 && !sphere) d = 2 * std::asinh(std::sqrt(c * s / 2)) / std::sqrt(c);
    return o.squared ? -beta / 2 * d * d : -beta * d;
  };
  double error = 0, most = 0;
  exact::each_bound_row(in, o.causal, [&](const exact::BoundRow& row, int64_t d) {
    double xx = 0;
    for (double e : row.q) xx += e * e;
    for (size_t j = 0; j < row.keys.size(); ++j) {
      double yy = 0;
      for (int64_t e = 0; e < d; ++e) yy += row.keys[j][e] * row.keys[j][e];
      const Product s = lifted_product(xx, yy, row.dots[j], c, sphere, o.directions);
      const double away = bound::gamma(d + 6) * s.magnitude + 4 * bound::kEpsilon * std::abs(s.value);
      const double exact = score(s.value);
      if (!std::isfinite(exact)) continue;
      most = std::max(most, std::abs(exact));
      error = std::max({error, std::abs(score(s.value + away) - exact) + 24 * bound::kEpsilon * std::abs(exact),
                        std::abs(score(s.value - away) - exact) + 24 * bound::kEpsilon * std::abs(exact)});
    }
  });
  n.query = n.key = 0;
  return exact::scored(n, most, error, "out");
}

double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  if (output != "out") return std::numeric_limits<double>::quiet_NaN();
  const View routing = array(in, "routing", "bound");
  const double weight = routing.data ? exact::largest(routing) : 1.0 / 3, value = softmax_norms(spec, in).value;
  // Three products and sums of at most `weight` times a value, and the rounding of a third.
  return weight * (softmax_bound(spec, in, "out") + curved_bound(spec, in, false) + curved_bound(spec, in, true) +
                   15 * bound::kEpsilon * value);
}

constexpr Entry kEntry = {
    .kind = Kind::kMechanism,
    .name = "cat-geometry",
    .room = "exact",
    .equation =
        "o[i] = sum over g of routing[i,g] o_g[i],  o_g[i] = softmax-weighted values of branch g with scores\n"
        "Euclidean scale * q[i].k[j];  hyperbolic -beta d_H(q[i], k[j]);  spherical -beta d_S(q[i], k[j]);  squared: "
        "-beta/2 d^2\n"
        "cosh(sqrt(c) d_H) = sqrt(1 + c |q|^2) sqrt(1 + c |k|^2) - c q.k,  cos(sqrt(c) d_S) = (1 + c q.k) / "
        "(sqrt(1 + c |q|^2) sqrt(1 + c |k|^2)), or q.k / (|q| |k|) with directions",
    .summary = "Euclidean, hyperbolic and spherical attention mixed for each token",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input", .forms = kForms, .patterns = kPatterns, .same_bits = SameBits::kAny},
    .notes =
        "278: the paper's abstract gives three branches and weights for each token; its equations were not at hand, so "
        "the scores are the usual ones of these geometries (1805.09786, 2105.14686), and values are averaged as "
        "vectors. The router is not part of this: its weights are the port `routing`. D at most 510. Forward only.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "cat-geometry", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors& in, const AttnOut& out, Context& context) {
            cat_geometry_attention(qkv, array(in, "routing", "cat-geometry"), o, out.out, context);
          });
    },
    .reference = [](const Spec& spec) { return make_cat_geometry_reference(options_from(spec)); },
    .bound = error_bound,
    .refuses = [](const Spec&, const Sizes& sizes) -> std::string_view {
      return sizes.d > 510 ? "curved branches take at most 510 elements a head" : "";
    },
};

}  // namespace

void register_cat_geometry(Registry& registry) {
  registry.add(kEntry);
}

}  // namespace attend
