#include "attend/reference/mla.h"

#include <cmath>
#include <limits>
#include <vector>

#include "reference/gradients.h"

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
    const View &w_uv = reference::required(in, "w_uv"), &result = reference::required(out, "out"),
               lse = reference::optional(out, "lse");
    const int64_t dv = w_uv.shape[1];
    each_row(in, [&](int64_t b, int64_t h, int64_t i, const Expanded& head, const Row& row) {
      for (int64_t c = 0; c < dv; ++c) {
        double sum = 0;
        for (size_t j = 0; j < row.weight.size(); ++j) sum += row.weight[j] * head.v[j][static_cast<size_t>(c)];
        reference::store(result, {b, h, i, c}, sum);
      }
      if (lse.data) reference::store(lse, {b, h, i}, row.lse);
    });
  }

  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override {
    using reference::add, reference::optional, reference::required;
    const View &q = required(in, "q"), &cache = required(in, "cache"), &w_uk = required(in, "w_uk"),
               &w_uv = required(in, "w_uv"), d_out = optional(grad_out, "out"), d_lse = optional(grad_out, "lse"),
               dq = optional(grad_in, "q"), d_cache = optional(grad_in, "cache"), d_uk = optional(grad_in, "w_uk"),
               d_uv = optional(grad_in, "w_uv");
    for (const View& grad : {dq, d_cache, d_uk, d_uv}) reference::clear(grad);
    const int64_t d = q.shape[3], rank = w_uk.shape[2];
    // Of element `row` of what a latent is brought up to by w.
    auto pull = [&](const View& w, const View& d_w, int64_t b, int64_t h, int64_t j, int64_t row, double x) {
      for (int64_t r = 0; r < rank; ++r) {
        add(d_w, {h, row, r}, x * element(cache, {b, 0, j, r}));
        add(d_cache, {b, 0, j, r}, x * element(w, {h, row, r}));
      }
    };
    each_row(in, [&](int64_t b, int64_t h, int64_t i, const Expanded& head, const Row& row) {
      std::vector<double> gradient(row.weight.size(), 0);
      double mean = 0;
      for (size_t j = 0; j < row.weight.size(); ++j) {
        for (int64_t c = 0; d_out.data && c < d_out.shape[3]; ++c) {
          const double x = element(d_out, {b, h, i, c});
          gradient[j] += x * head.v[j][static_cast<size_t>(c)];
          pull(w_uv, d_uv, b, h, static_cast<int64_t>(j), c, row.weight[j] * x);
        }
        mean += row.weight[j] * gradient[j];
      }
      for (size_t j = 0; j < row.weight.size(); ++j) {
        const double x =
            scale(in) * row.weight[j] * (gradient[j] - mean + (d_lse.data ? element(d_lse, {b, h, i}) : 0));
        for (int64_t c = 0; c < d; ++c) {
          const double of_key = x * element(q, {b, h, i, c});
          add(dq, {b, h, i, c}, x * head.k[j][static_cast<size_t>(c)]);
          if (c < d - o_.rope)
            pull(w_uk, d_uk, b, h, static_cast<int64_t>(j), c, of_key);
          else
            add(d_cache, {b, 0, static_cast<int64_t>(j), rank + c - (d - o_.rope)}, of_key);
        }
      }
    });
  }

 private:
  struct Expanded {
    std::vector<std::vector<double>> k, v;
  };
  struct Row {
    std::vector<double> weight;  // of visible keys
    double lse;
  };

  double scale(const Tensors& in) const { return reference::scale_of(o_.scale, reference::required(in, "q").shape[3]); }

  // f(b, h, i, keys and values of the head, weights) for every query.
  template <class F>
  void each_row(const Tensors& in, const F& f) const {
    const View &q = reference::required(in, "q"), &cache = reference::required(in, "cache"),
               &w_uk = reference::required(in, "w_uk"), &w_uv = reference::required(in, "w_uv"),
               lengths = reference::optional(in, "kv_lens"), positions = reference::optional(in, "q_positions");
    const int64_t d = q.shape[3], plain = d - o_.rope, rank = w_uk.shape[2], dv = w_uv.shape[1];
    for (int64_t b = 0; b < q.shape[0]; ++b) {
      const int64_t count = lengths.data ? static_cast<int64_t>(element(lengths, {b})) : cache.shape[2];
      for (int64_t h = 0; h < q.shape[1]; ++h) {
        Expanded head;
        head.k.resize(static_cast<size_t>(count)), head.v.resize(static_cast<size_t>(count));
        for (int64_t j = 0; j < count; ++j) {
          auto up = [&](const View& w, int64_t row) {
            double sum = 0;
            for (int64_t r = 0; r < rank; ++r) sum += element(w, {h, row, r}) * element(cache, {b, 0, j, r});
            return sum;
          };
          std::vector<double>&k = head.k[static_cast<size_t>(j)], &v = head.v[static_cast<size_t>(j)];
          for (int64_t c = 0; c < plain; ++c) k.push_back(up(w_uk, c));
          for (int64_t c = 0; c < o_.rope; ++c) k.push_back(element(cache, {b, 0, j, rank + c}));
          for (int64_t c = 0; c < dv; ++c) v.push_back(up(w_uv, c));
        }
        for (int64_t i = 0; i < q.shape[2]; ++i) {
          const int64_t position =
              positions.data ? static_cast<int64_t>(element(positions, {b, i})) : i + count - q.shape[2];
          const int64_t seen = o_.causal ? std::min(count, std::max<int64_t>(0, position + 1)) : count;
          Row row{std::vector<double>(static_cast<size_t>(seen), 0), -std::numeric_limits<double>::infinity()};
          double top = row.lse, sum = 0;
          for (size_t j = 0; j < row.weight.size(); ++j) {
            for (int64_t c = 0; c < d; ++c)
              row.weight[j] += element(q, {b, h, i, c}) * head.k[j][static_cast<size_t>(c)];
            row.weight[j] *= scale(in);
            top = std::max(top, row.weight[j]);
          }
          for (double& w : row.weight) sum += w = std::exp(w - top);
          for (double& w : row.weight) w /= sum;
          if (seen > 0) row.lse = top + std::log(sum);
          f(b, h, i, head, row);
        }
      }
    }
  }

  MlaOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_mla_reference(const MlaOptions& options) {
  return std::make_unique<MlaReference>(options);
}

}  // namespace attend
