#include "attend/exact/gaam.h"

#include <fmt/format.h>

#include <cmath>
#include <numbers>
#include <vector>

#include "attend/simd/dense.h"
#include "attend/simd/isa.h"
#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"
#include "exact/problem.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "gaam";

[[noreturn]] void refuse(std::string_view argument, std::string_view got, std::string_view rule) {
  throw Error(ErrorKind::kArgument, kOp, argument, got, rule);
}

void check(const View& x, const View& offset, const View& width, const GaamOptions& options, const View& out) {
  if (!(options.epsilon > 0) || !std::isfinite(options.epsilon))
    refuse("epsilon", fmt::format("{}", options.epsilon), "must be finite and above 0");
  // As q of softmax attention; the output as that of as many values as features.
  exact::check({.q = x, .k = x, .v = x}, {}, kOp);
  for (const auto& [name, view] : {std::pair{"offset", &offset}, {"width", &width}}) {
    if (!view->data) refuse(name, "null", "must be given");
    if (view->type != DType::kF32) refuse(fmt::format("{} type", name), name_of(view->type), "must be f32");
    if (view->rank != 2 || view->shape[0] != x.shape[1] || view->shape[1] < 1)
      refuse(name, to_string(*view), fmt::format("must be [Hq, G] with Hq = {} and G at least 1", x.shape[1]));
    if (view->shape[1] > 1 && view->stride[1] != 1)
      refuse(fmt::format("{} innermost stride", name), fmt::format("{}", view->stride[1]), "must be 1");
  }
  if (offset.shape[1] != width.shape[1]) refuse("width", to_string(width), "must have the shape of offset");
  for (int64_t h = 0; h < width.shape[0]; ++h)
    for (int64_t m = 0; m < width.shape[1]; ++m)
      if (const float w = *width.at<float>({h, m}); w == 0 || !std::isfinite(w))
        refuse(fmt::format("width[{}, {}]", h, m), fmt::format("{}", w), "must be finite and not 0");
  const exact::Problem p = exact::check({.q = x, .k = x, .v = x}, {}, kOp);
  exact::check_outputs(p, {.q = x, .bias = offset, .sink_logits = width}, {out}, kOp);
}

// One row of n elements at x[0], x[stride], ...
struct Row {
  std::vector<double> exponent;
  std::vector<float> weight;

  void run(const DenseKernels& kernels, const float* x, int64_t stride, int64_t n, const float* offset,
           const float* width, int64_t gaussians, double epsilon, float* out, int64_t out_stride) {
    double mean = 0, var = 0, least = 0, constant = 1;
    for (int64_t i = 0; i < n; ++i) mean += static_cast<double>(x[i * stride]);
    mean /= static_cast<double>(n);
    for (int64_t i = 0; i < n; ++i) {
      const double away = static_cast<double>(x[i * stride]) - mean;
      var += away * away;
    }
    var = epsilon + (n > 1 ? var / static_cast<double>(n - 1) : 0);
    std::fill_n(exponent.begin(), n, 0.0);
    for (int64_t m = 0; m < gaussians; ++m) {
      const double w = static_cast<double>(width[m]), center = mean + static_cast<double>(offset[m]);
      const double factor = 1 / (2 * w * w * var);
      constant /= std::sqrt(2 * std::numbers::pi * w * w);
      for (int64_t i = 0; i < n; ++i) {
        const double away = static_cast<double>(x[i * stride]) - center;
        exponent[static_cast<size_t>(i)] += away * away * factor;
      }
    }
    least = exponent[0];
    for (int64_t i = 1; i < n; ++i) least = std::min(least, exponent[static_cast<size_t>(i)]);
    for (int64_t i = 0; i < n; ++i)
      weight[static_cast<size_t>(i)] = static_cast<float>(least - exponent[static_cast<size_t>(i)]);
    float most;
    const double sum = static_cast<double>(kernels.exponentials(weight.data(), n, &most));
    const double scale = constant * std::exp(-least);
    // NaN stays NaN.
    const double divisor = scale * sum < epsilon ? epsilon : scale * sum;
    const float factor = static_cast<float>(scale / divisor);
    for (int64_t i = 0; i < n; ++i) out[i * out_stride] = x[i * stride] * (weight[static_cast<size_t>(i)] * factor);
  }
};

}  // namespace

void gaam_attention(const View& x, const View& offset, const View& width, const GaamOptions& options, const View& out,
                    Context& context) {
  check(x, offset, width, options, out);
  context.throw_if_stopped();
  const DenseKernels& kernels = dense_kernels(active_isa(context));
  const int64_t heads = x.shape[1], tokens = x.shape[2], d = x.shape[3], n = options.tokens ? tokens : d;
  if (x.count() == 0) return;
  std::vector<Row> rows(static_cast<size_t>(context.threads));
  for (Row& row : rows) {
    row.exponent.resize(static_cast<size_t>(n));
    row.weight.resize(static_cast<size_t>(n));
  }
  parallel_for(context.threads, x.shape[0] * heads, [&](int64_t task, int worker) {
    const int64_t b = task / heads, h = task % heads;
    for (int64_t r = 0; r < (options.tokens ? d : tokens); ++r) {
      if (context.stop.stop_requested()) return;
      const float* from = options.tokens ? x.at<float>({b, h, 0, r}) : x.at<float>({b, h, r});
      float* to = options.tokens ? out.at<float>({b, h, 0, r}) : out.at<float>({b, h, r});
      rows[static_cast<size_t>(worker)].run(kernels, from, options.tokens ? x.stride[2] : 1, n, offset.at<float>({h}),
                                            width.at<float>({h}), width.shape[1], options.epsilon, to,
                                            options.tokens ? out.stride[2] : 1);
    }
  });
  context.throw_if_stopped();
}

}  // namespace attend
