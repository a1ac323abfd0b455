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
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"},
                           kGradients[] = {"q", "k", "v", "routing"};

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

// A curved branch's score as a function of the product, and its derivative.
struct Curve {
  double beta, c, unit;
  bool sphere, squared;

  Curve(const CatGeometryOptions& o, double scale, bool of_sphere)
      : beta(o.beta == 0 ? scale : o.beta),
        c(of_sphere ? o.spherical : o.hyperbolic),
        unit(of_sphere && o.directions ? 1 : c),
        sphere(of_sphere),
        squared(o.squared) {}

  double distance(double s) const {
    if (c > 0 && sphere) return 2 * std::asin(std::sqrt(std::min(1.0, unit * s / 2))) / std::sqrt(c);
    if (c > 0) return 2 * std::asinh(std::sqrt(c * s / 2)) / std::sqrt(c);
    return std::sqrt(2 * s);
  }
  double score(double s) const {
    const double d = distance(std::max(0.0, s));
    return squared ? -beta / 2 * d * d : -beta * d;
  }
  double slope(double s) const {
    s = std::max(0.0, s);
    double root = std::sqrt(2 * s);
    if (c > 0 && sphere) root = std::sqrt(unit * s / 2 * std::max(0.0, 1 - unit * s / 2)) * 2 * std::sqrt(c) / unit;
    if (c > 0 && !sphere) root = std::sqrt(s * (c * s + 2));
    if (root == 0) return squared && s == 0 ? beta * (sphere && c > 0 ? unit / c : 1) : 0;
    return beta * (squared ? distance(s) : 1) / root;
  }
};

// A product errs as a sum of D + 2 terms whose factors are rounded once, and by 4 epsilon for the curvature.
double product_error(const Product& s, int64_t d) {
  return bound::gamma(d + 6) * s.magnitude + 4 * bound::kEpsilon * std::abs(s.value);
}

double square(const double* x, int64_t d) {
  double sum = 0;
  for (int64_t e = 0; e < d; ++e) sum += x[e] * x[e];
  return sum;
}

// Norms with the errors of a curved branch's scores. The score is monotone in the product: it errs most at the ends of
// the product's error. Roots, logarithm or arc sine and what multiplies them add 24 epsilon of the score.
bound::SoftmaxNorms curved_norms(const Spec& spec, const Tensors& in, bool sphere) {
  bound::SoftmaxNorms n = softmax_norms(spec, in);
  const CatGeometryOptions o = options_from(spec);
  const Curve curve(o, n.scale, sphere);
  double error = 0, most = 0;
  exact::each_bound_row(in, o.causal, [&](const exact::BoundRow& row, int64_t d) {
    for (size_t j = 0; j < row.keys.size(); ++j) {
      const Product s =
          lifted_product(square(row.q.data(), d), square(row.keys[j], d), row.dots[j], curve.c, sphere, o.directions);
      const double away = product_error(s, d), exact = curve.score(s.value);
      if (!std::isfinite(exact)) continue;
      most = std::max(most, std::abs(exact));
      error = std::max({error, std::abs(curve.score(s.value + away) - exact) + 24 * bound::kEpsilon * std::abs(exact),
                        std::abs(curve.score(s.value - away) - exact) + 24 * bound::kEpsilon * std::abs(exact)});
    }
  });
  n.query = n.key = 0;
  return exact::with_scores(n, most, error);
}

double largest_weight(const Tensors& in) {
  const View routing = array(in, "routing", "bound");
  return routing.data ? exact::largest(routing) : 1.0 / 3;
}

// By how much an element of the gradient of x moves, at most, per gradient of the product of lifted x and y: sums of the
// magnitudes of what add_lift_gradient() adds up.
double lift_slope(double x, double y, double x_most, double y_most, const Curve& curve, bool directions, bool key) {
  const double c = curve.c, a = std::sqrt(1 + c * x * x), b = std::sqrt(1 + c * y * y), lift = y * y / (1 + b);
  if (curve.sphere && directions) return x == 0 || y == 0 ? 0 : (y_most / y + x_most / x) / x;
  if (!curve.sphere || c == 0) return y_most + x_most * (key ? c * lift + 1 : b) / a;
  return y_most / (a * b) + x_most / (a * a * a) * (key ? c * x * y / b + 1 / b : c * x * y / b + 1 + c * lift / b);
}

// Of a curved branch: gradients of scores err as those of softmax attention, times the slope, which errs as the score
// does. Weights, which decide how much of a steep slope comes through, are worked out for each row.
double curved_gradient(const Spec& spec, const Tensors& in, bool sphere, bool key) {
  const bound::SoftmaxNorms norms = curved_norms(spec, in, sphere);
  const bound::SoftmaxGradientNorms n = gradient_norms(norms, in);
  const CatGeometryOptions o = options_from(spec);
  const Curve curve(o, norms.scale, sphere);
  const View q = array(in, "q", "bound"), k = array(in, "k", "bound");
  const int64_t group = q.shape[1] / k.shape[1];
  const int64_t chain = (key ? n.rows : n.forward.keys) + q.shape[3] + 60;
  double worst = 0;
  std::vector<double> by_key(static_cast<size_t>(k.shape[0] * k.shape[1] * k.shape[2]), 0);
  exact::each_bound_row(in, o.causal, [&](const exact::BoundRow& row, int64_t d) {
    auto most = [&](const double* x) {
      double m = 0;
      for (int64_t e = 0; e < d; ++e) m = std::max(m, std::abs(x[e]));
      return m;
    };
    const double xx = square(row.q.data(), d), x_most = most(row.q.data());
    double top = -std::numeric_limits<double>::infinity(), total = 0, sum = 0;
    std::vector<double> error, weight;
    for (size_t j = 0; j < row.keys.size(); ++j) {
      const double yy = square(row.keys[j], d), y_most = most(row.keys[j]), x = std::sqrt(xx), y = std::sqrt(yy);
      const Product s = lifted_product(xx, yy, row.dots[j], curve.c, sphere, o.directions);
      const double away = product_error(s, d), exact = curve.slope(s.value), above = curve.slope(s.value + away),
                   below = curve.slope(s.value - away), slope = std::max({exact, above, below});
      const double moved = std::max(std::abs(above - exact), std::abs(below - exact)) + bound::gamma(chain) * slope;
      error.push_back((bound::softmax_slope_error(n) * slope + bound::softmax_slope(n) * moved) *
                      (key ? lift_slope(y, x, y_most, x_most, curve, o.directions, true)
                           : lift_slope(x, y, x_most, y_most, curve, o.directions, false)));
      weight.push_back(curve.score(s.value));
      top = std::max(top, weight.back());
    }
    for (double& w : weight) total += w = std::exp(w - top);
    for (size_t j = 0; j < weight.size(); ++j) {
      sum += weight[j] / total * error[j];
      by_key[static_cast<size_t>((row.b * k.shape[1] + row.h / group) * k.shape[2]) + j] +=
          weight[j] / total * error[j];
    }
    worst = std::max(worst, sum);
  });
  if (key) worst = *std::max_element(by_key.begin(), by_key.end());
  return worst + 1e-37;
}

// Three products and sums of at most `weight` times a value, and the rounding of a third.
double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  const double weight = largest_weight(in);
  const bound::SoftmaxNorms flat = softmax_norms(spec, in), hyperbolic = curved_norms(spec, in, false),
                            spherical = curved_norms(spec, in, true);
  if (output == "out")
    return weight * (bound::softmax(flat) + bound::softmax(hyperbolic) + bound::softmax(spherical) +
                     15 * bound::kEpsilon * flat.value);
  if (output == "grad routing") {
    const View q = array(in, "q", "bound"), routing = array(in, "routing", "bound"),
               d_out = array(in, "grad out", "bound");
    const int64_t rows = q.shape[0] * q.shape[1] * q.shape[2] / std::max<int64_t>(1, routing.count() / 3);
    const double branch = std::max({bound::softmax(flat), bound::softmax(hyperbolic), bound::softmax(spherical)});
    double sum = 0;
    for (int64_t i = 0; i < d_out.shape[3]; ++i) sum += exact::largest(d_out);
    return static_cast<double>(rows) * sum * (branch + bound::gamma(rows + d_out.shape[3]) * flat.value) + 1e-37;
  }
  if (array(in, "k", "bound").count() == 0) return 1e-37;
  double sum = softmax_bound(flat, in, output);
  if (output == "grad v") {
    sum += softmax_bound(hyperbolic, in, output) + softmax_bound(spherical, in, output);
  } else {
    for (const bool sphere : {false, true}) sum += curved_gradient(spec, in, sphere, output == "grad k");
  }
  const bound::SoftmaxGradientNorms n = gradient_norms(flat, in);
  // The rounding of a third, of d_out times it, and of two sums.
  const double largest = output == "grad v" ? static_cast<double>(n.rows) * n.d_out : 0;
  return weight * (sum * (1 + 15 * bound::kEpsilon) + 15 * bound::kEpsilon * largest);
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
    .traits = {.exact_for = "every input",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny,
               .gradients = kGradients},
    .notes =
        "278: the paper's abstract gives three branches and weights for each token; its equations were not at hand, so "
        "the scores are the usual ones of these geometries (1805.09786, 2105.14686), and values are averaged as "
        "vectors. The router is not part of this: its weights are the port `routing`. D at most 510. "
        "A distance of 0, the largest on a sphere and the direction of a zero vector have no gradient: it counts as 0.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "cat-geometry", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors& in, const AttnOut& out, Context& context) {
            cat_geometry_attention(qkv, array(in, "routing", "cat-geometry"), o, out.out, context);
          },
          [o = options_from(spec)](const Qkv& qkv, const Tensors& in, const AttnOut&, const AttnOutGrad& grad_out,
                                   const Tensors& grad_in, Context& context) {
            auto to = [&](std::string_view name) { return array(grad_in, name, "cat-geometry"); };
            cat_geometry_attention_backward(qkv, array(in, "routing", "cat-geometry"), o, grad_out.out,
                                            {to("q"), to("k"), to("v"), to("routing")}, context);
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
