#include "attend/reference/gaam.h"

#include <cmath>
#include <numbers>
#include <vector>

#include "reference/gradients.h"

namespace attend {
namespace {

using namespace reference;

class GaamReference : public Operator {
 public:
  explicit GaamReference(const GaamOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    return {{"out", {DType::kF64, 4, required(in, "x").shape}}};
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const View& result = required(out, "out");
    each_row(in, [&](const Row& row) {
      for (size_t i = 0; i < row.x.size(); ++i)
        store(result, {row.b, row.h, token(row, i), feature(row, i)}, row.x[i] * row.gaussian[i] / row.divisor);
    });
  }

  // By the chain of the definition's own quantities: products of Gaussians, their sum, standard deviation, mean.
  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override {
    const View &offset = required(in, "offset"), &width = required(in, "width"), &d_out = required(grad_out, "out"),
               dx = optional(grad_in, "x"), d_offset = optional(grad_in, "offset"),
               d_width = optional(grad_in, "width");
    for (const View& grad : {dx, d_offset, d_width}) clear(grad);
    each_row(in, [&](const Row& row) {
      const double n = static_cast<double>(row.x.size());
      auto loss = [&](size_t i) { return element(d_out, {row.b, row.h, token(row, i), feature(row, i)}); };
      auto to_x = [&](size_t i, double d) { add(dx, {row.b, row.h, token(row, i), feature(row, i)}, d); };
      double d_divisor = 0, d_deviation = 0, d_mean = 0;
      for (size_t i = 0; i < row.x.size(); ++i)
        d_divisor -= loss(i) * row.x[i] * row.gaussian[i] / row.divisor / row.divisor;
      for (size_t i = 0; i < row.x.size(); ++i) {
        to_x(i, loss(i) * row.gaussian[i] / row.divisor);
        const double d_gaussian = loss(i) * row.x[i] / row.divisor + (row.divisor == row.sum ? d_divisor : 0);
        for (int64_t m = 0; m < width.shape[1]; ++m) {
          const double w = element(width, {row.h, m}),
                       y = (row.x[i] - row.mean - element(offset, {row.h, m})) / row.deviation,
                       d_y = -d_gaussian * row.gaussian[i] * y / (w * w);
          add(d_width, {row.h, m}, d_gaussian * row.gaussian[i] * (y * y / (w * w * w) - 1 / w));
          add(d_offset, {row.h, m}, -d_y / row.deviation);
          to_x(i, d_y / row.deviation);
          d_mean -= d_y / row.deviation;
          d_deviation -= d_y * y / row.deviation;
        }
      }
      for (size_t i = 0; i < row.x.size(); ++i)
        to_x(i, d_mean / n + (n > 1 ? d_deviation * (row.x[i] - row.mean) / (row.deviation * (n - 1)) : 0));
    });
  }

 private:
  struct Row {
    int64_t b, h, r;
    std::vector<double> x, gaussian;  // elements; products of their Gaussians
    double mean = 0, deviation = 0, sum = 0, divisor = 0;
  };

  int64_t token(const Row& row, size_t i) const { return o_.tokens ? static_cast<int64_t>(i) : row.r; }
  int64_t feature(const Row& row, size_t i) const { return o_.tokens ? row.r : static_cast<int64_t>(i); }

  template <class F>
  void each_row(const Tensors& in, F f) const {
    const View &x = required(in, "x"), &offset = required(in, "offset"), &width = required(in, "width");
    const int64_t tokens = x.shape[2], d = x.shape[3];
    for (int64_t b = 0; b < x.shape[0]; ++b)
      for (int64_t h = 0; h < x.shape[1]; ++h)
        for (int64_t r = 0; r < (o_.tokens ? d : tokens); ++r) {
          Row row{b, h, r, std::vector<double>(static_cast<size_t>(o_.tokens ? tokens : d)), {}};
          const double n = static_cast<double>(row.x.size());
          double variance = 0;
          for (size_t i = 0; i < row.x.size(); ++i) {
            row.x[i] = element(x, {b, h, token(row, i), feature(row, i)});
            row.mean += row.x[i] / n;
          }
          for (double e : row.x) variance += n > 1 ? std::pow(e - row.mean, 2) / (n - 1) : 0;
          row.deviation = std::sqrt(variance + o_.epsilon);
          for (double e : row.x) {
            double product = 1;
            for (int64_t m = 0; m < width.shape[1]; ++m) {
              const double w = element(width, {h, m}), y = (e - row.mean - element(offset, {h, m})) / row.deviation;
              product *= std::exp(-y * y / (2 * w * w)) / std::sqrt(2 * std::numbers::pi * w * w);
            }
            row.gaussian.push_back(product);
            row.sum += product;
          }
          row.divisor = std::max(row.sum, o_.epsilon);
          f(row);
        }
  }

  GaamOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_gaam_reference(const GaamOptions& options) {
  return std::make_unique<GaamReference>(options);
}

}  // namespace attend
