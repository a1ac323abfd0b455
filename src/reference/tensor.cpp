#include "attend/reference/tensor.h"

#include <cmath>
#include <vector>

#include "reference/gradients.h"

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
    const View& result = reference::required(out, "out");
    const size_t dv = static_cast<size_t>(result.shape[3]);
    each_query(in, [&](const Block& block) {
      std::vector<double> sum(dv, 0);
      for (size_t j = 0; j < block.seen; ++j)
        for (size_t l = 0; l < block.seen; ++l) {
          const double w = block.head.weight(block.score(j, l));
          for (size_t c = 0; c < dv; ++c) sum[c] += w * block.head.v1[j][c] * block.head.v2[l][c];
        }
      for (size_t c = 0; c < dv; ++c)
        reference::store(result, {block.head.b, block.head.h, block.i, static_cast<int64_t>(c)},
                         block.seen == 0 ? 0 : sum[c] / block.total);
    });
  }

  // d out / d w[j,l] = (v[j] * v2[l] - out) / sum of w.
  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override {
    using reference::optional;
    const View &d_out = reference::required(grad_out, "out"), dq = optional(grad_in, "q"), dk = optional(grad_in, "k"),
               dk2 = optional(grad_in, "k2"), dv = optional(grad_in, "v"), dv2 = optional(grad_in, "v2");
    for (const View& grad : {dq, dk, dk2, dv, dv2}) reference::clear(grad);
    each_query(in, [&](const Block& block) {
      const Head& head = block.head;
      const std::vector<double>& q = head.queries[static_cast<size_t>(block.i)];
      std::vector<double> loss, query(q.size(), 0);
      for (int64_t c = 0; c < d_out.shape[3]; ++c) loss.push_back(element(d_out, {head.b, head.h, block.i, c}));
      Rows gain(block.seen, std::vector<double>(block.seen)),
          score = gain, second_keys(block.seen, query), second_values(block.seen, std::vector<double>(loss.size(), 0));
      double mean = 0;
      for (size_t j = 0; j < block.seen; ++j)
        for (size_t l = 0; l < block.seen; ++l) {
          score[j][l] = block.score(j, l);
          for (size_t c = 0; c < loss.size(); ++c) gain[j][l] += loss[c] * head.v1[j][c] * head.v2[l][c];
          mean += head.weight(score[j][l]) / block.total * gain[j][l];
        }
      for (size_t j = 0; j < block.seen; ++j) {
        std::vector<double> keys(q.size(), 0), values(loss.size(), 0);  // second ones, weighted
        for (size_t l = 0; l < block.seen; ++l) {
          const double w = head.weight(score[j][l]) / block.total,
                       ds = head.scale * head.slope(score[j][l]) / block.total * (gain[j][l] - mean);
          for (size_t c = 0; c < q.size(); ++c) {
            keys[c] += ds * head.k2[l][c];
            second_keys[l][c] += ds * q[c] * head.k1[j][c];
          }
          for (size_t c = 0; c < loss.size(); ++c) {
            values[c] += w * head.v2[l][c];
            second_values[l][c] += w * head.v1[j][c];
          }
        }
        for (size_t c = 0; c < q.size(); ++c) query[c] += head.k1[j][c] * keys[c], keys[c] *= q[c];
        for (size_t c = 0; c < loss.size(); ++c) values[c] *= loss[c];
        add_row(dk, head.b, head.shared, j, keys);
        add_row(dv, head.b, head.shared, j, values);
      }
      add_row(dq, head.b, head.h, static_cast<size_t>(block.i), query);
      for (size_t l = 0; l < block.seen; ++l) {
        for (size_t c = 0; c < loss.size(); ++c) second_values[l][c] *= loss[c];
        add_row(dk2, head.b, head.shared, l, second_keys[l]);
        add_row(dv2, head.b, head.shared, l, second_values[l]);
      }
    });
  }

 private:
  static void add_row(const View& to, int64_t b, int64_t h, size_t row, const std::vector<double>& from) {
    for (size_t c = 0; c < from.size(); ++c)
      reference::add(to, {b, h, static_cast<int64_t>(row), static_cast<int64_t>(c)}, from[c]);
  }

  struct Head {
    int64_t b, h, shared, order;
    double scale;
    Rows queries, k1, v1, k2, v2;
    double top = 0;  // of the query at hand

    // exp up to a factor of the row, or its Taylor polynomial; and its derivative.
    double weight(double s) const { return order == 0 ? std::exp(s - top) : polynomial(s, 2 * order); }
    double slope(double s) const { return order == 0 ? std::exp(s - top) : polynomial(s, 2 * order - 1); }

    static double polynomial(double s, int64_t degree) {
      double term = 1, sum = 1;
      for (int64_t m = 1; m <= degree; ++m) {
        term *= s / static_cast<double>(m);
        sum += term;
      }
      return sum;
    }
  };
  struct Block {
    const Head& head;
    int64_t i;
    size_t seen;
    double total = 0;

    double score(size_t j, size_t l) const {
      double s = 0;
      for (size_t c = 0; c < head.k1[j].size(); ++c)
        s += head.queries[static_cast<size_t>(i)][c] * head.k1[j][c] * head.k2[l][c];
      return head.scale * s;
    }
  };

  template <class F>
  void each_query(const Tensors& in, F f) const {
    const View &q = reference::required(in, "q"), &k = reference::required(in, "k");
    for (int64_t b = 0; b < q.shape[0]; ++b)
      for (int64_t h = 0; h < q.shape[1]; ++h) {
        const int64_t shared = h / (q.shape[1] / k.shape[1]);
        Head head{b,
                  h,
                  shared,
                  o_.order,
                  reference::scale_of(o_.scale, q.shape[3]),
                  rows_of(q, b, h),
                  rows_of(k, b, shared),
                  rows_of(reference::required(in, "v"), b, shared),
                  rows_of(reference::required(in, "k2"), b, shared),
                  rows_of(reference::required(in, "v2"), b, shared)};
        for (int64_t i = 0; i < q.shape[2]; ++i) {
          const int64_t position = reference::query_position(in, b, i);
          Block block{head, i,
                      o_.causal ? static_cast<size_t>(std::max<int64_t>(0, std::min(position + 1, k.shape[2])))
                                : head.k1.size()};
          head.top = -1e300;
          for (size_t j = 0; j < block.seen && o_.order == 0; ++j)
            for (size_t l = 0; l < block.seen; ++l) head.top = std::max(head.top, block.score(j, l));
          for (size_t j = 0; j < block.seen; ++j)
            for (size_t l = 0; l < block.seen; ++l) block.total += head.weight(block.score(j, l));
          f(block);
        }
      }
  }

  TensorOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_tensor_reference(const TensorOptions& options) {
  return std::make_unique<TensorReference>(options);
}

}  // namespace attend
