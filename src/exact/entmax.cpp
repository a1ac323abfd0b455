#include "attend/exact/entmax.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "attend/tensor/error.h"
#include "exact/parameter.h"
#include "exact/row_backward.h"
#include "exact/score_gradients.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "entmax";
constexpr int kMostSteps = 200;

// Powers of distances from the threshold; those of sparsemax and entmax 1.5 without std::pow.
struct Powers {
  double p;
  bool square;

  explicit Powers(double alpha) : p(1 / (alpha - 1)), square(alpha == 1.5) {}
  // x^p and x^(p - 1) for x > 0.
  void operator()(double x, double& power, double& slope) const {
    slope = p == 1 ? 1 : square ? x : std::pow(x, p - 1);
    power = slope * x;
  }
};

// n scores to weights, in place, and to their slopes w^(2 - alpha), 0 where a weight is. `candidates` has room for n.
void project(float* s, int64_t n, double alpha, double* candidates, float* slopes = nullptr) {
  const Powers powers(alpha);
  double top = -std::numeric_limits<double>::infinity();
  bool nan = false;
  for (int64_t j = 0; j < n; ++j) {
    nan = nan || s[j] != s[j];
    top = std::max(top, static_cast<double>(s[j]));
  }
  if (nan || !std::isfinite(top)) {
    // All hidden: no weight. An infinite or NaN score: no answer.
    const float fill = !nan && top < 0 ? 0.0f : std::numeric_limits<float>::quiet_NaN();
    for (int64_t j = 0; j < n; ++j) s[j] = s[j] == -std::numeric_limits<float>::infinity() ? 0.0f : fill;
    if (slopes) std::copy_n(s, n, slopes);
    return;
  }
  // sum(t) = sum of max(0, (alpha - 1) s - t)^p falls and is convex: Newton's method from the left stays on the left.
  const double factor = alpha - 1;
  double t = factor * top - 1;
  // Only scores above this first t can have a weight.
  int64_t count = 0;
  for (int64_t j = 0; j < n; ++j) {
    const double x = factor * static_cast<double>(s[j]);
    candidates[count] = x;
    count += x > t;
  }
  for (int step = 0; step < kMostSteps; ++step) {
    double sum = 0, slope = 0;
    for (int64_t j = 0; j < count; ++j) {
      const double x = candidates[j] - t;
      if (!(x > 0)) continue;
      double power, derivative;
      powers(x, power, derivative);
      sum += power;
      slope += derivative;
    }
    const double next = t + (sum - 1) / (powers.p * slope);
    if (!(next > t)) break;
    const bool done = next - t <= 1e-15 * (1 + std::abs(t));
    t = next;
    if (done) break;
  }
  for (int64_t j = 0; j < n; ++j) {
    const double x = factor * static_cast<double>(s[j]) - t;
    double power = 0, derivative = 0;
    if (x > 0) powers(x, power, derivative);
    s[j] = static_cast<float>(power);
    if (slopes) slopes[j] = static_cast<float>(derivative);
  }
}

exact::Problem check(const Qkv& in, const EntmaxOptions& options) {
  exact::Problem p = exact::check(in, {.causal = options.causal, .scale = options.scale}, kOp);
  if (!(options.alpha >= 1.05 && options.alpha <= 2))
    throw Error(ErrorKind::kArgument, kOp, "alpha", fmt::format("{}", options.alpha), "must be in [1.05, 2]");
  if (in.sink_logits.data) throw Error(ErrorKind::kArgument, kOp, "sink_logits", "given", "must be absent");
  return p;
}

// Of one thread, a number for each key.
struct Numbers {
  std::vector<double> candidates;
  std::vector<float> slopes;
};
std::vector<Numbers> numbers_of(const exact::Problem& p, const Context& context) {
  size_t most = 1;
  for (const exact::Keys& keys : p.keys) most = std::max(most, static_cast<size_t>(keys.count()));
  return std::vector<Numbers>(static_cast<size_t>(context.threads),
                              {std::vector<double>(most), std::vector<float>(most)});
}

}  // namespace

void entmax_attention(const Qkv& in, const EntmaxOptions& options, const View& out, Context& context) {
  const exact::Problem p = check(in, options);
  exact::check_outputs(p, in, {out}, kOp);
  std::vector<Numbers> scratch = numbers_of(p, context);
  exact::attend_rows(p, out, context, [&](const exact::Row&, float* s, int64_t n, int worker) {
    project(s, n, options.alpha, scratch[static_cast<size_t>(worker)].candidates.data());
  });
}

void entmax_attention_backward(const Qkv& in, const EntmaxOptions& options, const View& grad_out,
                               const EntmaxGrad& grad_in, Context& context) {
  const exact::Problem p = check(in, options);
  exact::require_arrays(kOp, in);
  exact::check_row_gradients(kOp, p, in, {grad_out}, {grad_in.q, grad_in.k, grad_in.v},
                             {{"bias", grad_in.bias, in.bias}});
  std::vector<Numbers> scratch = numbers_of(p, context);
  exact::backward_rows(p, {grad_out, {}, grad_in.q, grad_in.k, grad_in.v, grad_in.bias}, in.k.shape[2], false, context,
                       [&](const exact::RowBlock& x) {
                         Numbers& w = scratch[static_cast<size_t>(x.worker)];
                         for (int64_t r = 0; r < x.count; ++r) {
                           float *s = x.s + r * x.stride, *g = x.g + r * x.stride, *slope = w.slopes.data();
                           const int64_t n = x.ends[r];
                           project(s, n, options.alpha, w.candidates.data(), slope);
                           double sum = 0, mean = 0;
                           for (int64_t j = 0; j < n; ++j) {
                             if (slope[j] == 0) continue;
                             sum += static_cast<double>(slope[j]);
                             mean += static_cast<double>(slope[j]) * static_cast<double>(g[j]);
                           }
                           mean /= sum;
                           for (int64_t j = 0; j < n; ++j)
                             g[j] =
                                 slope[j] == 0 ? 0.0f : slope[j] * static_cast<float>(static_cast<double>(g[j]) - mean);
                         }
                       });
}

}  // namespace attend
