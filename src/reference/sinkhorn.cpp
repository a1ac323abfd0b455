#include "attend/reference/sinkhorn.h"

#include <cmath>
#include <vector>

#include "reference/inputs.h"

namespace attend {
namespace {

using reference::element;

class SinkhornReference : public Operator {
 public:
  explicit SinkhornReference(const SinkhornOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    auto specs = reference::attention_outputs(in);
    specs.erase("lse");
    return specs;
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const View &q = reference::required(in, "q"), &result = reference::required(out, "out");
    const int64_t queries = q.shape[2], d = q.shape[3];
    const double scale = o_.scale == 0 ? 1 / std::sqrt(static_cast<double>(d)) : o_.scale;
    for (int64_t b = 0; b < q.shape[0]; ++b)
      for (int64_t h = 0; h < q.shape[1]; ++h) {
        const reference::Keys keys(in, b, h, q.shape[1], q.shape[0]);
        std::vector<std::vector<double>> log_matrix(static_cast<size_t>(queries));
        for (int64_t i = 0; i < queries; ++i)
          for (int64_t j = 0; j < keys.count; ++j) {
            double s = 0;
            for (int64_t c = 0; c < d; ++c) s += element(q, {b, h, i, c}) * keys.k(j, c);
            log_matrix[static_cast<size_t>(i)].push_back(scale * s);
          }
        const size_t n = static_cast<size_t>(queries), m = static_cast<size_t>(keys.count);
        for (int64_t step = 0; step < o_.iterations; ++step) {
          const bool by_row = step % 2 == 0;
          for (size_t line = 0; line < (by_row ? n : m); ++line) {
            const size_t length = by_row ? m : n;
            auto entry = [&](size_t at) -> double& { return by_row ? log_matrix[line][at] : log_matrix[at][line]; };
            double top = -1e300, sum = 0;
            for (size_t at = 0; at < length; ++at) top = std::max(top, entry(at));
            for (size_t at = 0; at < length; ++at) sum += std::exp(entry(at) - top);
            const double target = by_row ? 1 : static_cast<double>(n) / static_cast<double>(m);
            for (size_t at = 0; at < length; ++at) entry(at) += std::log(target) - top - std::log(sum);
          }
        }
        for (int64_t i = 0; i < queries; ++i)
          for (int64_t c = 0; c < result.shape[3]; ++c) {
            double sum = 0;
            for (size_t j = 0; j < m; ++j)
              sum += std::exp(log_matrix[static_cast<size_t>(i)][j]) * keys.v(static_cast<int64_t>(j), c);
            reference::store(result, {b, h, i, c}, sum);
          }
      }
  }

 private:
  SinkhornOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_sinkhorn_reference(const SinkhornOptions& options) {
  return std::make_unique<SinkhornReference>(options);
}

}  // namespace attend
