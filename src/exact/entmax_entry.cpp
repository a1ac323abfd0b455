// The registry's entry for entmax.
#include <algorithm>
#include <cmath>
#include <vector>

#include "attend/exact/entmax.h"
#include "attend/reference/entmax.h"
#include "exact/score_entries.h"

namespace attend {
namespace {

constexpr Option kOptions[] = {option::kCausal,
                               option::kScale,
                               {"alpha", "", "towards 1: softmax; 2: sparsemax", "1.5", OptionType::kReal, 1.05, 2}};
constexpr Port kIn[] = {port::kQ, port::kK, port::kV, port::kKvLens, port::kQPositions, port::kBias};
constexpr Port kOut[] = {port::kOut};
constexpr Paper kPapers[] = {
    {"From Softmax to Sparsemax: A Sparse Model of Attention and Multi-Label Classification", "1602.02068", ""},
    {"Sparse Sequence-to-Sequence Models", "1905.05702", ""}};
constexpr std::string_view kForms[] = {"parallel"}, kPatterns[] = {"full", "causal", "self", "cross", "grouped"},
                           kGradients[] = {"q", "k", "v", "bias"};

EntmaxOptions options_from(const Spec& spec) {
  return {.causal = spec.flag("causal"), .scale = spec.real("scale"), .alpha = spec.real("alpha")};
}

// The threshold of numbers x: sum over j of max(0, x - t)^p = 1. Newton's method from the left.
double threshold_of(const std::vector<double>& x, double p) {
  double t = *std::max_element(x.begin(), x.end()) - 1;
  for (int step = 0; step < 100; ++step) {
    double sum = 0, slope = 0;
    for (const double e : x) {
      if (e <= t) continue;
      sum += std::pow(e - t, p);
      slope += p * std::pow(e - t, p - 1);
    }
    const double next = t + (sum - 1) / slope;
    if (!(next > t)) break;
    t = next;
  }
  return t;
}

// Of the gradients of queries, keys and the bias, whose scores' are u (g - mean of g weighted by u): numbers x move by at most
// twice what scores do, their own error and the threshold's, and u = x^(p - 1) grows with x.
double slopes_bound(const Spec& spec, const Tensors& in, const bound::SoftmaxGradientNorms& n, std::string_view port) {
  const View k = array(in, "k", "bound"), bias = array(in, "bias", "bound");
  const int64_t group = array(in, "q", "bound").shape[1] / k.shape[1], keys = k.shape[2];
  const double factor = spec.real("alpha") - 1, p = 1 / factor, most = 2 * n.d_out * n.value;
  auto slope = [p](double x) { return x > 0 ? std::pow(x, p - 1) : 0; };
  std::vector<double> by_key(static_cast<size_t>(k.shape[0] * k.shape[1] * keys), 0), x, u, moved,
      by_bias(static_cast<size_t>(bias.data ? bias.count() : 0), 0);
  const int64_t terms = exact::bias_terms(in);
  double row_most = 0;
  exact::each_bound_row(in, spec.flag("causal"), [&](const exact::BoundRow& row, int64_t) {
    x.clear(), u.clear(), moved.clear();
    for (size_t j = 0; j < row.dots.size(); ++j)
      x.push_back(factor *
                  (n.forward.scale * row.dots[j] + exact::bias_at(bias, row.b, row.h, row.i, static_cast<int64_t>(j))));
    const double t = threshold_of(x, p), by = 2 * factor * bound::softmax_score(n.forward) + 1e-14 * (1 + std::abs(t));
    double sum = 0, all_moved = 0;
    for (const double e : x) {
      u.push_back(slope(e - t));
      moved.push_back(slope(e - t + by) - slope(e - t - by) + 2 * bound::kEpsilon * u.back());
      sum += u.back(), all_moved += moved.back();
    }
    // Slopes add up to at least 1, as weights do, which are no larger.
    const double mean = most * (all_moved / std::max(0.5, sum - all_moved) + bound::gamma(n.dv + 8));
    double row_sum = 0;
    for (size_t j = 0; j < u.size(); ++j) {
      const double error = moved[j] * (most + mean) + u[j] * (mean + most * bound::gamma(n.dv + 8));
      row_sum += error;
      by_key[static_cast<size_t>((row.b * k.shape[1] + row.h / group) * keys) + j] +=
          error + bound::gamma(n.rows + 8) * most * u[j];
      if (bias.data)
        by_bias[static_cast<size_t>(exact::bias_index(bias, row.b, row.h, row.i, static_cast<int64_t>(j)))] +=
            error + bound::gamma(terms + 8) * most * u[j];
    }
    row_most = std::max(row_most, row_sum + bound::gamma(n.forward.keys + 8) * most * sum);
  });
  auto largest = [](const std::vector<double>& of) { return of.empty() ? 0 : *std::max_element(of.begin(), of.end()); };
  if (port == "q") return n.forward.scale * n.k_max * row_most + 1e-37;
  if (port == "k") return n.forward.scale * n.q_max * largest(by_key) + 1e-37;
  return largest(by_bias) + 1e-37;
}

double error_bound(const Spec& spec, const Tensors& in, std::string_view output) {
  const bound::SoftmaxNorms n = softmax_norms(spec, in);
  // The threshold moves at most as far as a score, and a weight at most by x^(p - 1) <= 1 times both.
  const double weight = 2 * (bound::softmax_score(n) + bound::kEpsilon);
  if (output == "out") return n.value * (static_cast<double>(n.keys) * weight + bound::gamma(n.keys + 2)) + 1e-37;
  const bound::SoftmaxGradientNorms g = gradient_norms(n, in);
  if (output == "grad v") return static_cast<double>(g.rows) * g.d_out * (weight + bound::gamma(g.rows + 8)) + 1e-37;
  return slopes_bound(spec, in, g, output.substr(5));
}

constexpr Entry kEntmax = {
    .kind = Kind::kMechanism,
    .name = "entmax",
    .room = "exact",
    .equation =
        "o[i] = sum over visible j of w[j] v[j],  w[j] = max(0, (alpha - 1) s[j] - t)^(1 / (alpha - 1)) with sum 1,  s "
        "= scale * q[i].k[j]",
    .summary = "attention with exact zeros: entmax and, at alpha 2, sparsemax",
    .options = kOptions,
    .in = kIn,
    .out = kOut,
    .papers = kPapers,
    .traits = {.exact_for = "every input",
               .forms = kForms,
               .patterns = kPatterns,
               .same_bits = SameBits::kAny,
               .gradients = kGradients},
    .notes = "The threshold comes from Newton's method in double.",
    .make = [](const Spec& spec) -> std::unique_ptr<Component> {
      return exact::function_operator(
          "entmax", kIn, kOut,
          [o = options_from(spec)](const Qkv& qkv, const Tensors&, const AttnOut& out, Context& context) {
            entmax_attention(qkv, o, out.out, context);
          },
          [o = options_from(spec)](const Qkv& qkv, const Tensors&, const AttnOut&, const AttnOutGrad& grad_out,
                                   const Tensors& grad_in, Context& context) {
            auto to = [&](std::string_view name) { return array(grad_in, name, "entmax"); };
            entmax_attention_backward(qkv, o, grad_out.out, {to("q"), to("k"), to("v"), to("bias")}, context);
          });
    },
    .reference = [](const Spec& spec) { return make_entmax_reference(options_from(spec)); },
    .bound = error_bound,
};

}  // namespace

void register_entmax(Registry& registry) {
  registry.add(kEntmax);
}

}  // namespace attend
