#include "attend/reference/tensor.h"

#include <cmath>
#include <vector>

#include "reference/inputs.h"

namespace attend {
namespace {

using reference::element;
using Rows = std::vector<std::vector<double>>;

Rows rows_of(const View& v, int64_t b, int64_t h) {
  Rows rows(static_cast<size_t>(v.shape[2]));
  for (int64_t t = 0; t < v.shape[2]; ++t)
    for (int64_t c = 0; c < v.shape[3]; ++c) rows[static_cast<size_t>(t)].push_back(element(v, {b, h, t, c}));
  return rows;
}

class TensorReference : public Operator {
 public:
  explicit TensorReference(const TensorOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    auto specs = reference::attention_outputs(in);
    specs.erase("lse");
    return specs;
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const View &q = reference::required(in, "q"), &k = reference::required(in, "k"),
               &result = reference::required(out, "out");
    const double scale = o_.scale == 0 ? 1 / std::sqrt(static_cast<double>(q.shape[3])) : o_.scale;
    const size_t dv = static_cast<size_t>(result.shape[3]);
    for (int64_t b = 0; b < q.shape[0]; ++b)
      for (int64_t h = 0; h < q.shape[1]; ++h) {
        const int64_t shared = h / (q.shape[1] / k.shape[1]);
        const Rows queries = rows_of(q, b, h), k1 = rows_of(k, b, shared),
                   v1 = rows_of(reference::required(in, "v"), b, shared),
                   k2 = rows_of(reference::required(in, "k2"), b, shared),
                   v2 = rows_of(reference::required(in, "v2"), b, shared);
        for (int64_t i = 0; i < q.shape[2]; ++i) {
          const int64_t position = reference::query_position(in, b, i);
          const size_t seen =
              o_.causal ? static_cast<size_t>(std::max<int64_t>(0, std::min(position + 1, k.shape[2]))) : k1.size();
          auto score = [&](size_t j, size_t l) {
            double s = 0;
            for (size_t c = 0; c < k1[j].size(); ++c) s += queries[static_cast<size_t>(i)][c] * k1[j][c] * k2[l][c];
            return scale * s;
          };
          double top = -1e300;
          for (size_t j = 0; j < seen && o_.order == 0; ++j)
            for (size_t l = 0; l < seen; ++l) top = std::max(top, score(j, l));
          std::vector<double> sum(dv, 0);
          double total = 0;
          for (size_t j = 0; j < seen; ++j)
            for (size_t l = 0; l < seen; ++l) {
              const double w = weight(score(j, l), top);
              total += w;
              for (size_t c = 0; c < dv; ++c) sum[c] += w * v1[j][c] * v2[l][c];
            }
          for (size_t c = 0; c < dv; ++c)
            reference::store(result, {b, h, i, static_cast<int64_t>(c)}, seen == 0 ? 0 : sum[c] / total);
        }
      }
  }

 private:
  // exp up to a factor of the row, or its Taylor polynomial.
  double weight(double s, double top) const {
    if (o_.order == 0) return std::exp(s - top);
    double term = 1, sum = 1;
    for (int64_t m = 1; m <= 2 * o_.order; ++m) {
      term *= s / static_cast<double>(m);
      sum += term;
    }
    return sum;
  }

  TensorOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_tensor_reference(const TensorOptions& options) {
  return std::make_unique<TensorReference>(options);
}

}  // namespace attend
