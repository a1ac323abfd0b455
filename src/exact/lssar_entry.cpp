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
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"},
                           kGradients[] = {"q", "k", "v"};

LssarOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"), .scale = spec.real("scale"), .power = spec.integer("power")};
}

double norm(const double* x, int64_t d) {
  double sum = 0;
  for (int64_t c = 0; c < d; ++c) sum += x[c] * x[c];
  return std::sqrt(sum);
}

// A number that is known to lie in [low, high], which is 0 or above.
struct Range {
  double low, high;
  double width() const { return high - low; }
};

// What the gradient of a row's cosines may be off by, and its magnitudes: rounding moves each share by `each` of itself,
// so that weights, and the slopes of the power, lie in ranges.
struct CosineSlopes {
  std::vector<double> error, magnitude;
  std::vector<Range> weight;

  CosineSlopes(const std::vector<double>& cosine, double scale, int64_t power, double each, double product,
               double product_error) {
    const double n = static_cast<double>(cosine.size()), p = static_cast<double>(power);
    double sum = 0;
    std::vector<double> share, shares_error(cosine.size(), 2 * product_error), most(cosine.size(), product);
    for (const double c : cosine)
      sum += std::log1p(std::exp(scale * c)), share.push_back(std::log1p(std::exp(scale * c)));
    for (double& a : share) a /= sum, weight.push_back({a * (1 - each), a * (1 + each)});
    if (power > 0) {
      Range second{0, 0};
      for (Range& w : weight) {
        const double away = n > 3 ? 1 / n : 0;
        w = {std::max(0.0, w.low - away - bound::kEpsilon), std::max(0.0, w.high - away + bound::kEpsilon)};
        second.low += std::pow(w.low, p), second.high += std::pow(w.high, p);
      }
      double moved = 0;
      std::vector<Range> slope;
      for (Range& w : weight) {
        slope.push_back({w.low == 0 ? 0 : p * std::pow(w.low, p - 1) / second.high,
                         w.high == 0 ? 0 : p * std::pow(w.high, p - 1) / second.low});
        w = {std::pow(w.low, p) / second.high, std::pow(w.high, p) / second.low};
        moved += w.width() + 80 * bound::kEpsilon * w.high;
      }
      for (size_t j = 0; j < slope.size(); ++j) {
        most[j] = 2 * product * slope[j].high;
        shares_error[j] = 2 * product * (slope[j].width() + 80 * bound::kEpsilon * slope[j].high) +
                          slope[j].high * (2 * product_error + product * (moved + bound::gamma(cosine.size() + 8)));
      }
    }
    double mean = 0, mean_error = 0;
    for (size_t j = 0; j < share.size(); ++j) {
      mean += share[j] * most[j];
      mean_error += share[j] * (shares_error[j] + most[j] * (2 * each + bound::gamma(cosine.size() / 16 + 16)));
    }
    for (size_t j = 0; j < share.size(); ++j) {
      const double by = std::abs(scale) / (1 + std::exp(-scale * cosine[j])) / sum;
      magnitude.push_back(by * (most[j] + mean));
      error.push_back(by * (shares_error[j] + mean_error) + magnitude[j] * (3 * each + 60 * bound::kEpsilon));
    }
  }
};

double gradient_bound(const Spec& spec, const Tensors& in, std::string_view port) {
  const bound::SoftmaxGradientNorms g = gradient_norms(softmax_norms(spec, in), in);
  const View k = array(in, "k", "bound");
  const int64_t group = array(in, "q", "bound").shape[1] / k.shape[1];
  const double given = spec.real("scale"), product = g.d_out * g.value,
               product_error = bound::gamma(g.dv + 6) * product;
  double worst = 0;
  std::vector<double> by_key(static_cast<size_t>(k.shape[0] * k.shape[1] * k.shape[2]), 0);
  exact::each_bound_row(in, spec.flag("causal"), [&](const exact::BoundRow& row, int64_t d) {
    const double n = static_cast<double>(row.dots.size()), length = norm(row.q.data(), d);
    const double scale = given == 0 ? std::log(static_cast<double>(d)) * std::log(n) : given;
    std::vector<double> cosine;
    for (size_t j = 0; j < row.dots.size(); ++j) {
      const double size = length * norm(row.keys[j], d);
      cosine.push_back(size == 0 ? 0 : row.dots[j] / size);
    }
    const double each = 2 * std::abs(scale) * (bound::gamma(d) + 8 * bound::kEpsilon) + 40 * bound::kEpsilon +
                        bound::gamma(row.dots.size() / 16 + 8);
    const CosineSlopes slopes(cosine, scale, spec.integer("power"), each, product, product_error);
    double sum = 0;
    for (size_t j = 0; j < cosine.size(); ++j) {
      double& key = by_key[static_cast<size_t>((row.b * k.shape[1] + row.h / group) * k.shape[2]) + j];
      const double chain = bound::gamma(g.rows + d + 20), away = norm(row.keys[j], d);
      if (port == "v")
        key += g.d_out * (slopes.weight[j].width() + (80 * bound::kEpsilon + chain) * slopes.weight[j].high);
      // Both terms of the cosine's slope have at most its length.
      if (port == "k" && away > 0) key += 2 * (slopes.error[j] + 3 * chain * slopes.magnitude[j]) / away;
      sum += 2 * (slopes.error[j] + 3 * bound::gamma(row.dots.size() + row.q.size() + 20) * slopes.magnitude[j]);
    }
    if (port == "q" && length > 0) worst = std::max(worst, sum / length);
  });
  for (const double key : by_key) worst = std::max(worst, key);
  return worst + 1e-37;
}

double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  if (output != "out") return gradient_bound(spec, in, output.substr(5));
  const bound::SoftmaxNorms norms = softmax_norms(spec, in);
  const double power = static_cast<double>(spec.integer("power")), given = spec.real("scale");
  double worst = 0;
  exact::each_bound_row(in, spec.flag("causal"), [&](const exact::BoundRow& row, int64_t d) {
    const double n = static_cast<double>(row.dots.size());
    const double scale = given == 0 ? std::log(static_cast<double>(d)) * std::log(n) : given;
    std::vector<double> a;
    double sum = 0, largest = 0, shifted = 0;
    for (size_t j = 0; j < row.dots.size(); ++j) {
      const double size = norm(row.q.data(), d) * norm(row.keys[j], d);
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
    .traits = {.exact_for = "every input",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny,
               .gradients = kGradients},
    .notes = "The mechanism; that a trained model extrapolates 16 times its length needs training.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "lssar", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors&, const AttnOut& out, Context& context) {
            lssar_attention(qkv, o, out.out, context);
          },
          [o = options_from(spec)](const Qkv& qkv, const Tensors&, const AttnOut&, const AttnOutGrad& grad_out,
                                   const Tensors& grad_in, Context& context) {
            auto to = [&](std::string_view name) { return array(grad_in, name, "lssar"); };
            lssar_attention_backward(qkv, o, grad_out.out, {to("q"), to("k"), to("v")}, context);
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
