#include "attend/reference/sinkhorn.h"

#include <cmath>
#include <vector>

#include "reference/gradients.h"

namespace attend {
namespace {

using namespace reference;

using Matrix = std::vector<std::vector<double>>;  // [Tq][Tk]

class SinkhornReference : public Operator {
 public:
  explicit SinkhornReference(const SinkhornOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    auto specs = attention_outputs(in);
    specs.erase("lse");
    return specs;
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const View& result = required(out, "out");
    each_head(in, [&](int64_t b, int64_t h, const Keys& keys) {
      const Matrix last = steps(in, b, h, keys).back();
      for (int64_t i = 0; i < result.shape[2]; ++i)
        for (int64_t c = 0; c < result.shape[3]; ++c) {
          double sum = 0;
          for (int64_t j = 0; j < keys.count; ++j) sum += std::exp(at(last, i, j)) * keys.v(j, c);
          store(result, {b, h, i, c}, sum);
        }
    });
  }

  // A step takes ln(sum of the line / target) off its entries, so that the line's gradients lose their sum in the
  // proportions of the line after the step.
  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override {
    const View &q = required(in, "q"), &d_out = required(grad_out, "out"), dq = optional(grad_in, "q"),
               dk = optional(grad_in, "k"), dv = optional(grad_in, "v");
    for (const View& grad : {dq, dk, dv}) clear(grad);
    each_head(in, [&](int64_t b, int64_t h, const Keys& keys) {
      const std::vector<Matrix> all = steps(in, b, h, keys);
      const int64_t n = q.shape[2], m = keys.count;
      Matrix d(static_cast<size_t>(n), std::vector<double>(static_cast<size_t>(m), 0));
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < m; ++j) {
          const double weight = std::exp(at(all.back(), i, j));
          for (int64_t c = 0; c < d_out.shape[3]; ++c) {
            d[static_cast<size_t>(i)][static_cast<size_t>(j)] += weight * element(d_out, {b, h, i, c}) * keys.v(j, c);
            add(dv, {b, keys.head, j, c}, weight * element(d_out, {b, h, i, c}));
          }
        }
      for (int64_t step = o_.iterations; step > 0; --step) {
        const Matrix& after = all[static_cast<size_t>(step)];
        const bool by_row = step % 2 == 1;
        for (int64_t line = 0; line < (by_row ? n : m); ++line) {
          const int64_t length = by_row ? m : n;
          auto entry = [&](int64_t x) -> double& {
            return d[static_cast<size_t>(by_row ? line : x)][static_cast<size_t>(by_row ? x : line)];
          };
          double sum = 0;
          for (int64_t x = 0; x < length; ++x) sum += entry(x);
          for (int64_t x = 0; x < length; ++x)
            entry(x) -= sum * std::exp(by_row ? at(after, line, x) : at(after, x, line)) / target(by_row, n, m);
        }
      }
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < m; ++j)
          add_dot(q, dq, dk, Query{b, h, i, 0, keys}, j,
                  scale_of(o_.scale, q.shape[3]) * d[static_cast<size_t>(i)][static_cast<size_t>(j)]);
    });
  }

 private:
  template <class F>
  static void each_head(const Tensors& in, F f) {
    const View& q = required(in, "q");
    for (int64_t b = 0; b < q.shape[0]; ++b)
      for (int64_t h = 0; h < q.shape[1]; ++h) f(b, h, Keys(in, b, h, q.shape[1], q.shape[0]));
  }

  static double at(const Matrix& x, int64_t i, int64_t j) { return x[static_cast<size_t>(i)][static_cast<size_t>(j)]; }

  // What a line sums to.
  static double target(bool by_row, int64_t queries, int64_t keys) {
    return by_row ? 1 : static_cast<double>(queries) / static_cast<double>(keys);
  }

  // Logarithms of the matrix before the first step and after each.
  std::vector<Matrix> steps(const Tensors& in, int64_t b, int64_t h, const Keys& keys) const {
    const View& q = required(in, "q");
    const int64_t n = q.shape[2], m = keys.count;
    std::vector<Matrix> all(1, Matrix(static_cast<size_t>(n)));
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < m; ++j)
        all[0][static_cast<size_t>(i)].push_back(scale_of(o_.scale, q.shape[3]) * dot(q, {b, h, i, 0, keys}, j));
    for (int64_t step = 1; step <= o_.iterations; ++step) {
      Matrix next = all.back();
      const bool by_row = step % 2 == 1;
      for (int64_t line = 0; line < (by_row ? n : m); ++line) {
        const int64_t length = by_row ? m : n;
        auto entry = [&](int64_t x) -> double& {
          return next[static_cast<size_t>(by_row ? line : x)][static_cast<size_t>(by_row ? x : line)];
        };
        double top = -1e300, sum = 0;
        for (int64_t x = 0; x < length; ++x) top = std::max(top, entry(x));
        for (int64_t x = 0; x < length; ++x) sum += std::exp(entry(x) - top);
        for (int64_t x = 0; x < length; ++x) entry(x) += std::log(target(by_row, n, m)) - top - std::log(sum);
      }
      all.push_back(std::move(next));
    }
    return all;
  }

  SinkhornOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_sinkhorn_reference(const SinkhornOptions& options) {
  return std::make_unique<SinkhornReference>(options);
}

}  // namespace attend
