#include "attend/reference/dcmha.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "reference/inputs.h"

namespace attend {
namespace {

using reference::element;

class DcmhaReference : public Operator {
 public:
  explicit DcmhaReference(const DcmhaOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    auto specs = reference::attention_outputs(in);
    specs.erase("lse");
    return specs;
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const View &q = reference::required(in, "q"), &result = reference::required(out, "out");
    const int64_t heads = q.shape[1], d = q.shape[3];
    const double scale = o_.scale == 0 ? 1 / std::sqrt(static_cast<double>(d)) : o_.scale;
    for (int64_t b = 0; b < q.shape[0]; ++b)
      for (int64_t i = 0; i < q.shape[2]; ++i) {
        const int64_t position = reference::query_position(in, b, i);
        std::vector<std::vector<double>> columns;  // [key][head]
        std::vector<int64_t> seen;
        for (int64_t j = 0; j < reference::Keys(in, b, 0, heads, q.shape[0]).count; ++j) {
          if (o_.causal && j > position) continue;
          std::vector<double> score;
          for (int64_t h = 0; h < heads; ++h) {
            const reference::Keys keys(in, b, h, heads, q.shape[0]);
            double s = 0;
            for (int64_t c = 0; c < d; ++c) s += element(q, {b, h, i, c}) * keys.k(j, c);
            score.push_back(scale * s);
          }
          columns.push_back(compose(in, "pre_", b, i, j, score));
          seen.push_back(j);
        }
        for (size_t h = 0; h < static_cast<size_t>(heads); ++h) {
          double top = -std::numeric_limits<double>::infinity(), sum = 0;
          for (const auto& column : columns) top = std::max(top, column[h]);
          for (auto& column : columns) sum += column[h] = std::exp(column[h] - top);
          for (auto& column : columns) column[h] /= sum;
        }
        for (size_t at = 0; at < seen.size(); ++at) columns[at] = compose(in, "post_", b, i, seen[at], columns[at]);
        for (int64_t h = 0; h < heads; ++h)
          for (int64_t c = 0; c < result.shape[3]; ++c) {
            const reference::Keys keys(in, b, h, heads, q.shape[0]);
            double sum = 0;
            for (size_t at = 0; at < seen.size(); ++at)
              sum += columns[at][static_cast<size_t>(h)] * keys.v(seen[at], c);
            reference::store(result, {b, h, i, c}, sum);
          }
      }
  }

 private:
  static std::vector<double> compose(const Tensors& in, const std::string& side, int64_t b, int64_t i, int64_t j,
                                     const std::vector<double>& x) {
    const View base = reference::optional(in, side + "w");
    const View &q1 = reference::required(in, side + "q1"), &q2 = reference::required(in, side + "q2"),
               &qd = reference::required(in, side + "qd"), &k1 = reference::required(in, side + "k1"),
               &k2 = reference::required(in, side + "k2"), &kd = reference::required(in, side + "kd");
    const int64_t heads = static_cast<int64_t>(x.size()), ranks = q1.shape[2];
    std::vector<double> y(x.size(), 0);
    for (int64_t h = 0; h < heads; ++h) {
      double& to = y[static_cast<size_t>(h)];
      for (int64_t g = 0; g < heads; ++g) {
        double map = base.data ? element(base, {g, h}) : g == h ? 1 : 0;
        if (g == h) map += element(qd, {b, i, h}) + element(kd, {b, j, h});
        for (int64_t r = 0; r < ranks; ++r)
          map += element(q1, {b, i, r, g}) * element(q2, {b, i, r, h}) +
                 element(k1, {b, j, r, g}) * element(k2, {b, j, r, h});
        to += map * x[static_cast<size_t>(g)];
      }
    }
    return y;
  }

  DcmhaOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_dcmha_reference(const DcmhaOptions& options) {
  return std::make_unique<DcmhaReference>(options);
}

}  // namespace attend
