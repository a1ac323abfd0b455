#include "attend/reference/gaam.h"

#include <cmath>
#include <numbers>
#include <vector>

#include "reference/inputs.h"

namespace attend {
namespace {

using reference::element;

class GaamReference : public Operator {
 public:
  explicit GaamReference(const GaamOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    return {{"out", {DType::kF64, 4, reference::required(in, "x").shape}}};
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const View &x = reference::required(in, "x"), &result = reference::required(out, "out");
    const int64_t d = x.shape[3], tokens = x.shape[2], n = o_.tokens ? tokens : d;
    for (int64_t b = 0; b < x.shape[0]; ++b)
      for (int64_t h = 0; h < x.shape[1]; ++h)
        for (int64_t r = 0; r < (o_.tokens ? d : tokens); ++r) {
          auto at = [&](int64_t i) { return o_.tokens ? element(x, {b, h, i, r}) : element(x, {b, h, r, i}); };
          double mean = 0, variance = 0, sum = 0;
          for (int64_t i = 0; i < n; ++i) mean += at(i) / static_cast<double>(n);
          for (int64_t i = 0; i < n && n > 1; ++i) variance += std::pow(at(i) - mean, 2) / static_cast<double>(n - 1);
          std::vector<double> mixture;
          for (int64_t i = 0; i < n; ++i) {
            mixture.push_back(1);
            for (int64_t m = 0; m < reference::required(in, "offset").shape[1]; ++m) {
              const double offset = element(reference::required(in, "offset"), {h, m}),
                           width = element(reference::required(in, "width"), {h, m}),
                           y = (at(i) - (mean + offset)) / std::sqrt(variance + o_.epsilon);
              mixture.back() *=
                  std::exp(-y * y / (2 * width * width)) / std::sqrt(2 * std::numbers::pi * width * width);
            }
            sum += mixture.back();
          }
          for (int64_t i = 0; i < n; ++i) {
            const double value = at(i) * mixture[static_cast<size_t>(i)] / (sum < o_.epsilon ? o_.epsilon : sum);
            if (o_.tokens) {
              reference::store(result, {b, h, i, r}, value);
            } else {
              reference::store(result, {b, h, r, i}, value);
            }
          }
        }
  }

 private:
  GaamOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_gaam_reference(const GaamOptions& options) {
  return std::make_unique<GaamReference>(options);
}

}  // namespace attend
