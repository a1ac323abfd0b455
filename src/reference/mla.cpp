#include "attend/reference/mla.h"

#include <cmath>
#include <limits>
#include <vector>

#include "reference/inputs.h"

namespace attend {
namespace {

using reference::element;

class MlaReference : public Operator {
 public:
  explicit MlaReference(const MlaOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    const Shape &q = reference::required(in, "q").shape, &w = reference::required(in, "w_uv").shape;
    return {{"out", {DType::kF64, 4, {q[0], q[1], q[2], w[1]}}}, {"lse", {DType::kF64, 3, {q[0], q[1], q[2]}}}};
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const View &q = reference::required(in, "q"), &cache = reference::required(in, "cache"),
               &w_uk = reference::required(in, "w_uk"), &w_uv = reference::required(in, "w_uv"),
               &result = reference::required(out, "out"), lse = reference::optional(out, "lse"),
               lengths = reference::optional(in, "kv_lens"), positions = reference::optional(in, "q_positions");
    const int64_t d = q.shape[3], plain = d - o_.rope, rank = w_uk.shape[2], dv = w_uv.shape[1];
    const double scale = o_.scale == 0 ? 1 / std::sqrt(static_cast<double>(d)) : o_.scale;
    for (int64_t b = 0; b < q.shape[0]; ++b) {
      const int64_t count = lengths.data ? static_cast<int64_t>(element(lengths, {b})) : cache.shape[2];
      for (int64_t h = 0; h < q.shape[1]; ++h) {
        std::vector<std::vector<double>> k(static_cast<size_t>(count)), v(static_cast<size_t>(count));
        for (int64_t j = 0; j < count; ++j) {
          auto up = [&](const View& w, int64_t row) {
            double sum = 0;
            for (int64_t r = 0; r < rank; ++r) sum += element(w, {h, row, r}) * element(cache, {b, 0, j, r});
            return sum;
          };
          for (int64_t c = 0; c < plain; ++c) k[static_cast<size_t>(j)].push_back(up(w_uk, c));
          for (int64_t c = 0; c < o_.rope; ++c)
            k[static_cast<size_t>(j)].push_back(element(cache, {b, 0, j, rank + c}));
          for (int64_t c = 0; c < dv; ++c) v[static_cast<size_t>(j)].push_back(up(w_uv, c));
        }
        for (int64_t i = 0; i < q.shape[2]; ++i) {
          const int64_t position =
              positions.data ? static_cast<int64_t>(element(positions, {b, i})) : i + count - q.shape[2];
          const int64_t seen = o_.causal ? std::min(count, std::max<int64_t>(0, position + 1)) : count;
          std::vector<double> score(static_cast<size_t>(seen), 0), total(static_cast<size_t>(dv), 0);
          double top = -std::numeric_limits<double>::infinity(), sum = 0;
          for (size_t j = 0; j < score.size(); ++j) {
            for (int64_t c = 0; c < d; ++c) score[j] += element(q, {b, h, i, c}) * k[j][static_cast<size_t>(c)];
            score[j] *= scale;
            top = std::max(top, score[j]);
          }
          for (size_t j = 0; j < score.size(); ++j) {
            const double weight = std::exp(score[j] - top);
            sum += weight;
            for (size_t c = 0; c < total.size(); ++c) total[c] += weight * v[j][c];
          }
          for (int64_t c = 0; c < dv; ++c)
            reference::store(result, {b, h, i, c}, seen == 0 ? 0 : total[static_cast<size_t>(c)] / sum);
          if (lse.data) reference::store(lse, {b, h, i}, seen == 0 ? top : top + std::log(sum));
        }
      }
    }
  }

 private:
  MlaOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_mla_reference(const MlaOptions& options) {
  return std::make_unique<MlaReference>(options);
}

}  // namespace attend
