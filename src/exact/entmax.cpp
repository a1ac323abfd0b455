#include "attend/exact/entmax.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "attend/tensor/error.h"
#include "exact/rows.h"

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

// n scores to weights, in place. `candidates` has room for n.
void project(float* s, int64_t n, double alpha, double* candidates) {
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
    double power = 0, derivative;
    if (x > 0) powers(x, power, derivative);
    s[j] = static_cast<float>(power);
  }
}

}  // namespace

void entmax_attention(const Qkv& in, const EntmaxOptions& options, const View& out, Context& context) {
  const exact::Problem p = exact::check(in, {.causal = options.causal, .scale = options.scale}, kOp);
  if (!(options.alpha >= 1.05 && options.alpha <= 2))
    throw Error(ErrorKind::kArgument, kOp, "alpha", fmt::format("{}", options.alpha), "must be in [1.05, 2]");
  if (in.sink_logits.data) throw Error(ErrorKind::kArgument, kOp, "sink_logits", "given", "must be absent");
  exact::check_outputs(p, in, {out}, kOp);
  int64_t most = 1;
  for (const exact::Keys& keys : p.keys) most = std::max(most, keys.count());
  std::vector<std::vector<double>> candidates(static_cast<size_t>(context.threads));
  for (auto& c : candidates) c.resize(static_cast<size_t>(most) + 1);
  exact::attend_rows(p, out, context, [&](const exact::Row&, float* s, int64_t n, int worker) {
    project(s, n, options.alpha, candidates[static_cast<size_t>(worker)].data());
  });
}

}  // namespace attend
