// The definition in double precision: the equations of the slope, solved by Cholesky's method.
#include "attend/reference/lla.h"

#include <cmath>
#include <limits>
#include <vector>

#include "reference/inputs.h"

namespace attend {
namespace {

using reference::element;

class LlaReference : public Operator {
 public:
  explicit LlaReference(const LlaOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    auto specs = reference::attention_outputs(in);
    specs.erase("lse");
    return specs;
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const View &q = reference::required(in, "q"), &result = reference::required(out, "out");
    for (int64_t b = 0; b < q.shape[0]; ++b)
      for (int64_t h = 0; h < q.shape[1]; ++h)
        for (int64_t i = 0; i < q.shape[2]; ++i) row(in, result, b, h, i);
  }

 private:
  void row(const Tensors& in, const View& result, int64_t b, int64_t h, int64_t i) const {
    const View& q = reference::required(in, "q");
    const int64_t d = q.shape[3], dv = result.shape[3], position = reference::query_position(in, b, i);
    const reference::Keys keys(in, b, h, q.shape[1], q.shape[0]);
    const double scale = o_.scale == 0 ? 1 / std::sqrt(static_cast<double>(d)) : o_.scale;
    std::vector<int64_t> seen;
    std::vector<double> weight;
    double top = -std::numeric_limits<double>::infinity(), total = 0;
    for (int64_t j = 0; j < keys.count; ++j) {
      if (o_.causal && keys.position(j) > position) continue;
      double s = 0;
      for (int64_t c = 0; c < d; ++c) s += element(q, {b, h, i, c}) * keys.k(j, c);
      seen.push_back(j);
      weight.push_back(scale * s);
      top = std::max(top, scale * s);
    }
    for (double& w : weight) {
      w = std::exp(w - top);
      total += w;
    }
    // M + ridge I and m of z = k - q, then rho by Cholesky's factors, row by row of the lower triangle.
    const size_t n = static_cast<size_t>(d);
    std::vector<std::vector<double>> a(n, std::vector<double>(n, 0)), z;
    std::vector<double> rho(n, 0);
    for (size_t at = 0; at < seen.size(); ++at) {
      z.emplace_back();
      for (int64_t c = 0; c < d; ++c) z[at].push_back(keys.k(seen[at], c) - element(q, {b, h, i, c}));
      for (size_t r = 0; r < n; ++r) {
        const double factor = weight[at] / total * z[at][r];
        rho[r] += factor;
        for (size_t c = 0; c <= r; ++c) a[r][c] += factor * z[at][c];
      }
    }
    for (size_t r = 0; r < n; ++r) {
      a[r][r] += o_.ridge;
      for (size_t c = 0; c <= r; ++c) {
        for (size_t e = 0; e < c; ++e) a[r][c] -= a[r][e] * a[c][e];
        a[r][c] = c == r ? std::sqrt(a[r][r]) : a[r][c] / a[c][c];
      }
      for (size_t c = 0; c < r; ++c) rho[r] -= a[r][c] * rho[c];
      rho[r] /= a[r][r];
    }
    for (size_t r = n; r-- > 0;) {
      for (size_t up = r + 1; up < n; ++up) rho[r] -= a[up][r] * rho[up];
      rho[r] /= a[r][r];
    }
    std::vector<double> sum(static_cast<size_t>(dv), 0);
    double share = 0;
    for (size_t at = 0; at < seen.size(); ++at) {
      double gain = 1;
      for (size_t c = 0; c < n; ++c) gain -= rho[c] * z[at][c];
      gain *= weight[at];
      share += gain;
      for (int64_t c = 0; c < dv; ++c) sum[static_cast<size_t>(c)] += gain * keys.v(seen[at], c);
    }
    for (int64_t c = 0; c < dv; ++c)
      reference::store(result, {b, h, i, c}, seen.empty() ? 0 : sum[static_cast<size_t>(c)] / share);
  }

  LlaOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_lla_reference(const LlaOptions& options) {
  return std::make_unique<LlaReference>(options);
}

}  // namespace attend
