#include "attend/exact/gaam.h"

#include <fmt/format.h>

#include <cmath>
#include <numbers>
#include <vector>

#include "attend/simd/dense.h"
#include "attend/simd/isa.h"
#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"
#include "exact/score_gradients.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "gaam";

[[noreturn]] void refuse(std::string_view argument, std::string_view got, std::string_view rule) {
  throw Error(ErrorKind::kArgument, kOp, argument, got, rule);
}

void check(const View& x, const View& offset, const View& width, const GaamOptions& options) {
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
}

void check_output(const View& x, const View& offset, const View& width, const View& out) {
  const exact::Problem p = exact::check({.q = x, .k = x, .v = x}, {}, kOp);
  exact::check_outputs(p, {.q = x, .bias = offset, .sink_logits = width}, {out}, kOp);
}

// n elements of x, of a gradient or of an output: at[0], at[stride], ...
template <class T>
struct Line {
  T* at;
  int64_t stride;
  T& operator[](int64_t i) const { return at[i * stride]; }
};
using Floats = Line<const float>;

struct Gaussians {
  const float *offset, *width;
  int64_t count;
};

// The weights of one row.
class Row {
 public:
  explicit Row(int64_t n) : exponent_(static_cast<size_t>(n)), weight_(exponent_.size()), slope_(exponent_.size()) {}

  void attend(const DenseKernels& kernels, Floats x, const Gaussians& of, double epsilon, Line<float> out) {
    weigh(kernels, x, of, epsilon);
    for (int64_t i = 0; i < n(); ++i) out[i] = x[i] * (weight_[static_cast<size_t>(i)] * factor_);
  }

  // With E[i] the gradient of the exponent of element i, and z = x[i] - center: the sums over the row of the gradients
  // of offsets and widths join `d_offset` and `d_width`, unless they are null.
  void backward(const DenseKernels& kernels, Floats x, const Gaussians& of, double epsilon, Floats d_out,
                Line<float> d_x, double* d_offset, double* d_width) {
    weigh(kernels, x, of, epsilon);
    const double length = static_cast<double>(n());
    double mean_gain = 0, all = 0;
    for (int64_t i = 0; i < n() && divides_; ++i) mean_gain += share(i) * gain(x, d_out, i);
    for (int64_t i = 0; i < n(); ++i) {
      exponent_gradient(i) = -share(i) * (gain(x, d_out, i) - mean_gain);
      all += exponent_gradient(i);
    }
    double d_mean = 0, d_var = 0;
    for (int64_t i = 0; i < n(); ++i) {
      double slope = 0;
      for (int64_t m = 0; m < of.count; ++m) {
        const double w = static_cast<double>(of.width[m]), z = away(x, of, i, m), part = z / (w * w * var_);
        slope += part;
        if (d_offset) d_offset[m] -= exponent_gradient(i) * part;
        if (d_width) d_width[m] -= exponent_gradient(i) * part * z / w;
      }
      d_mean -= exponent_gradient(i) * slope;
      d_var -= exponent_gradient(i) * exponent_[static_cast<size_t>(i)] / var_;
      if (d_x.at) d_x[i] = static_cast<float>(static_cast<double>(d_out[i]) * share(i) + exponent_gradient(i) * slope);
    }
    // What all weights share cancels unless epsilon divides them.
    for (int64_t m = 0; d_width && !divides_ && m < of.count; ++m) d_width[m] += all / static_cast<double>(of.width[m]);
    const double of_var = n() > 1 ? 2 * d_var / (length - 1) : 0;
    for (int64_t i = 0; d_x.at && i < n(); ++i)
      d_x[i] += static_cast<float>(d_mean / length + of_var * (static_cast<double>(x[i]) - mean_));
  }

 private:
  int64_t n() const { return static_cast<int64_t>(exponent_.size()); }
  double share(int64_t i) const { return static_cast<double>(weight_[static_cast<size_t>(i)] * factor_); }
  double& exponent_gradient(int64_t i) { return slope_[static_cast<size_t>(i)]; }
  static double gain(Floats x, Floats d_out, int64_t i) {
    return static_cast<double>(x[i]) * static_cast<double>(d_out[i]);
  }
  double away(Floats x, const Gaussians& of, int64_t i, int64_t m) const {
    return static_cast<double>(x[i]) - (mean_ + static_cast<double>(of.offset[m]));
  }

  void weigh(const DenseKernels& kernels, Floats x, const Gaussians& of, double epsilon) {
    double constant = 1;
    mean_ = 0, var_ = 0;
    for (int64_t i = 0; i < n(); ++i) mean_ += static_cast<double>(x[i]);
    mean_ /= static_cast<double>(n());
    for (int64_t i = 0; i < n(); ++i) {
      const double from_mean = static_cast<double>(x[i]) - mean_;
      var_ += from_mean * from_mean;
    }
    var_ = epsilon + (n() > 1 ? var_ / static_cast<double>(n() - 1) : 0);
    std::fill(exponent_.begin(), exponent_.end(), 0.0);
    for (int64_t m = 0; m < of.count; ++m) {
      const double w = static_cast<double>(of.width[m]), factor = 1 / (2 * w * w * var_);
      constant /= std::sqrt(2 * std::numbers::pi * w * w);
      for (int64_t i = 0; i < n(); ++i) {
        const double z = away(x, of, i, m);
        exponent_[static_cast<size_t>(i)] += z * z * factor;
      }
    }
    const double least = *std::min_element(exponent_.begin(), exponent_.end());
    for (size_t i = 0; i < weight_.size(); ++i) weight_[i] = static_cast<float>(least - exponent_[i]);
    float most;
    const double sum = static_cast<double>(kernels.exponentials(weight_.data(), n(), &most));
    const double scale = constant * std::exp(-least);
    divides_ = !(scale * sum < epsilon);  // NaN stays NaN
    factor_ = static_cast<float>(scale / (divides_ ? scale * sum : epsilon));
  }

  std::vector<double> exponent_;
  std::vector<float> weight_;
  std::vector<double> slope_;
  double mean_ = 0, var_ = 0;
  float factor_ = 0;      // of weights: over their sum
  bool divides_ = false;  // by the sum, not by epsilon
};

// f(worker's row, b, h, line) for every row; line(view) is where it lies in a view of x's shape. Threads share out batch
// entries and heads.
template <class F>
void each_line(const View& x, const GaamOptions& options, Context& context, const F& f) {
  const int64_t heads = x.shape[1], tokens = x.shape[2], d = x.shape[3], n = options.tokens ? tokens : d;
  std::vector<Row> rows(static_cast<size_t>(context.threads), Row(n));
  parallel_for(context.threads, x.shape[0] * heads, [&](int64_t task, int worker) {
    const int64_t b = task / heads, h = task % heads;
    for (int64_t r = 0; r < (options.tokens ? d : tokens); ++r) {
      if (context.stop.stop_requested()) return;
      f(rows[static_cast<size_t>(worker)], b, h, [&, r](const View& of) {
        return Line<float>{options.tokens ? of.at<float>({b, h, 0, r}) : of.at<float>({b, h, r}),
                           options.tokens ? of.stride[2] : 1};
      });
    }
  });
  context.throw_if_stopped();
}

}  // namespace

void gaam_attention(const View& x, const View& offset, const View& width, const GaamOptions& options, const View& out,
                    Context& context) {
  check(x, offset, width, options);
  check_output(x, offset, width, out);
  context.throw_if_stopped();
  if (x.count() == 0) return;
  const DenseKernels& kernels = dense_kernels(active_isa(context));
  each_line(x, options, context, [&](Row& row, int64_t, int64_t h, const auto& line) {
    const Line<float> from = line(x);
    row.attend(kernels, {from.at, from.stride}, {offset.at<float>({h}), width.at<float>({h}), width.shape[1]},
               options.epsilon, line(out));
  });
}

void gaam_attention_backward(const View& x, const View& offset, const View& width, const GaamOptions& options,
                             const View& grad_out, const GaamGrad& grad_in, Context& context) {
  check(x, offset, width, options);
  if (!grad_out.data && x.count() != 0) refuse("gradient of out", "null", "must be given");
  if (grad_out.data) check_output(x, offset, width, grad_out);
  exact::check_parameter_gradients(
      kOp, {.in = {.q = x}, .options = {}, .forward = {}, .grad_out = {.out = grad_out}, .variant = {}}, {},
      {{"x", grad_in.x, x}, {"offset", grad_in.offset, offset}, {"width", grad_in.width, width}});
  context.throw_if_stopped();
  const DenseKernels& kernels = dense_kernels(active_isa(context));
  const int64_t heads = x.shape[1], gaussians = width.shape[1];
  // Of each batch entry and head, offsets before widths.
  std::vector<double> sums(static_cast<size_t>(x.shape[0] * heads * 2 * gaussians), 0);
  if (x.count() > 0)
    each_line(x, options, context, [&](Row& row, int64_t b, int64_t h, const auto& line) {
      const Line<float> from = line(x), loss = line(grad_out);
      double* sum = sums.data() + (b * heads + h) * 2 * gaussians;
      row.backward(kernels, {from.at, from.stride}, {offset.at<float>({h}), width.at<float>({h}), gaussians},
                   options.epsilon, {loss.at, loss.stride}, grad_in.x.data ? line(grad_in.x) : Line<float>{nullptr, 0},
                   grad_in.offset.data ? sum : nullptr, grad_in.width.data ? sum + gaussians : nullptr);
    });
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t m = 0; m < 2 * gaussians; ++m) {
      const View& to = m < gaussians ? grad_in.offset : grad_in.width;
      if (!to.data) continue;
      double sum = 0;
      for (int64_t b = 0; b < x.shape[0]; ++b) sum += sums[static_cast<size_t>((b * heads + h) * 2 * gaussians + m)];
      *to.at<float>({h, m % gaussians}) = static_cast<float>(sum);
    }
}

}  // namespace attend
