#include "attend/reference/differential.h"

#include <cmath>
#include <limits>
#include <vector>

#include "reference/gradients.h"

namespace attend {
namespace {

using reference::element;

class DifferentialReference : public Operator {
 public:
  explicit DifferentialReference(const DifferentialOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    auto specs = reference::attention_outputs(in);
    specs.erase("lse");
    return specs;
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const View& result = reference::required(out, "out");
    each_row(in, [&](const Row& row) {
      for (int64_t c = 0; c < result.shape[3]; ++c) {
        double sum = 0;
        for (size_t n = 0; n < row.seen.size(); ++n)
          sum += (row.signal[n] - row.lambda * row.noise[n]) * row.keys.v(row.seen[n], c);
        reference::store(result, {row.b, row.h, row.i, c}, sum);
      }
    });
  }

  // Of each softmax, d w[j] / d s[k] = w[j] (1[j = k] - w[k]); the noise takes part with -lambda.
  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override {
    using reference::add;
    const View &q = reference::required(in, "q"), &q_noise = reference::required(in, "q_noise"),
               &k_noise = reference::required(in, "k_noise"), &d_out = reference::required(grad_out, "out");
    const View dq = reference::optional(grad_in, "q"), dk = reference::optional(grad_in, "k"),
               dv = reference::optional(grad_in, "v"), dq_noise = reference::optional(grad_in, "q_noise"),
               dk_noise = reference::optional(grad_in, "k_noise"), d_lambda = reference::optional(grad_in, "lambda");
    for (const View& grad : {dq, dk, dv, dq_noise, dk_noise, d_lambda}) reference::clear(grad);
    each_row(in, [&](const Row& row) {
      std::vector<double> gradient;
      double signal_mean = 0, noise_mean = 0;
      for (size_t n = 0; n < row.seen.size(); ++n) {
        double g = 0;
        for (int64_t c = 0; c < d_out.shape[3]; ++c) {
          const double d = element(d_out, {row.b, row.h, row.i, c});
          g += d * row.keys.v(row.seen[n], c);
          add(dv, {row.b, row.keys.head, row.seen[n], c}, (row.signal[n] - row.lambda * row.noise[n]) * d);
        }
        gradient.push_back(g);
        signal_mean += row.signal[n] * g;
        noise_mean += row.noise[n] * g;
      }
      add(d_lambda, {row.b, row.h, row.i}, -noise_mean);
      for (size_t n = 0; n < row.seen.size(); ++n) {
        const int64_t j = row.seen[n];
        const double d_signal = scale(q) * row.signal[n] * (gradient[n] - signal_mean),
                     d_noise = -row.lambda * scale(q) * row.noise[n] * (gradient[n] - noise_mean);
        for (int64_t c = 0; c < q.shape[3]; ++c) {
          add(dq, {row.b, row.h, row.i, c}, d_signal * row.keys.k(j, c));
          add(dk, {row.b, row.keys.head, j, c}, d_signal * element(q, {row.b, row.h, row.i, c}));
          add(dq_noise, {row.b, row.group, row.i, c}, d_noise * element(k_noise, {row.b, row.keys.head, j, c}));
          add(dk_noise, {row.b, row.keys.head, j, c}, d_noise * element(q_noise, {row.b, row.group, row.i, c}));
        }
      }
    });
  }

 private:
  struct Row {
    int64_t b, h, i, group;
    const reference::Keys& keys;
    double lambda;
    std::vector<int64_t> seen;
    std::vector<double> signal, noise;  // weights
  };

  double scale(const View& q) const {
    return o_.scale == 0 ? 1 / std::sqrt(static_cast<double>(q.shape[3])) : o_.scale;
  }

  template <class F>
  void each_row(const Tensors& in, F f) const {
    const View &q = reference::required(in, "q"), &noise = reference::required(in, "q_noise"),
               &k_noise = reference::required(in, "k_noise"), given = reference::optional(in, "lambda");
    const int64_t d = q.shape[3], heads = q.shape[1];
    for (int64_t b = 0; b < q.shape[0]; ++b)
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t i = 0; i < q.shape[2]; ++i) {
          const reference::Keys keys(in, b, h, heads, q.shape[0]);
          const int64_t position = reference::query_position(in, b, i), group = h / (heads / noise.shape[1]);
          Row row{b, h, i, group, keys, given.data ? element(given, {b, h, i}) : o_.lambda, {}, {}, {}};
          for (int64_t j = 0; j < keys.count; ++j) {
            if (o_.causal && keys.position(j) > position) continue;
            double s = 0, n = 0;
            for (int64_t c = 0; c < d; ++c) {
              s += element(q, {b, h, i, c}) * keys.k(j, c);
              n += element(noise, {b, group, i, c}) * element(k_noise, {b, keys.head, j, c});
            }
            row.seen.push_back(j);
            row.signal.push_back(scale(q) * s);
            row.noise.push_back(scale(q) * n);
          }
          row.signal = softmax(row.signal);
          row.noise = softmax(row.noise);
          f(row);
        }
  }

  static std::vector<double> softmax(std::vector<double> s) {
    double top = -std::numeric_limits<double>::infinity(), sum = 0;
    for (double x : s) top = std::max(top, x);
    for (double& x : s) sum += x = std::exp(x - top);
    for (double& x : s) x /= sum;
    return s;
  }

  DifferentialOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_differential_reference(const DifferentialOptions& options) {
  return std::make_unique<DifferentialReference>(options);
}

}  // namespace attend
