#include "reference/row_reference.h"

#include <cmath>

#include "attend/tensor/error.h"
#include "reference/gradients.h"

namespace attend::reference {

std::map<std::string, TensorSpec, std::less<>> RowReference::infer(const Tensors& in) const {
  auto specs = attention_outputs(in);
  specs.erase("lse");
  return specs;
}

void RowReference::fill(const Tensors& in, const Keys& keys, Row& row) const {
  const View bias = optional(in, "bias");
  for (int64_t j = 0; j < keys.count; ++j) {
    if (causal_ && keys.position(j) > row.position) continue;
    row.seen.push_back(j);
    row.weight.push_back(score(in, row, keys, j));
    if (bias.data) row.weight.back() += element(bias, {row.b, row.h, row.i, j});
  }
  if (!row.seen.empty()) weigh(in, row);
}

void RowReference::forward(const Tensors& in, const Tensors& out, Form, Context&) const {
  const View &q = required(in, "q"), &result = required(out, "out");
  for (int64_t b = 0; b < q.shape[0]; ++b)
    for (int64_t h = 0; h < q.shape[1]; ++h)
      for (int64_t i = 0; i < q.shape[2]; ++i) {
        const Keys keys(in, b, h, q.shape[1], q.shape[0]);
        Row row{b, h, i, query_position(in, b, i), {}, {}};
        fill(in, keys, row);
        for (int64_t c = 0; c < result.shape[3]; ++c) {
          double sum = 0;
          for (size_t at = 0; at < row.seen.size(); ++at)
            if (row.weight[at] != 0) sum += row.weight[at] * keys.v(row.seen[at], c);
          store(result, {b, h, i, c}, sum);
        }
      }
}

void RowReference::backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                            Context&) const {
  const View &q = required(in, "q"), &d_out = required(grad_out, "out"), dq = optional(grad_in, "q"),
             dk = optional(grad_in, "k"), dv = optional(grad_in, "v"), d_bias = optional(grad_in, "bias");
  for (const View& grad : {dq, dk, dv, d_bias}) clear(grad);
  for (int64_t b = 0; b < q.shape[0]; ++b)
    for (int64_t h = 0; h < q.shape[1]; ++h)
      for (int64_t i = 0; i < q.shape[2]; ++i) {
        const Keys keys(in, b, h, q.shape[1], q.shape[0]);
        const Query at{b, h, i, query_position(in, b, i), keys};
        Row row{b, h, i, at.position, {}, {}};
        fill(in, keys, row);
        std::vector<double> gradient(row.seen.size(), 0), d_score(row.seen.size(), 0);
        for (size_t n = 0; n < row.seen.size(); ++n)
          for (int64_t c = 0; c < d_out.shape[3]; ++c) {
            const double d = element(d_out, {b, h, i, c});
            gradient[n] += d * keys.v(row.seen[n], c);
            add(dv, {b, keys.head, row.seen[n], c}, row.weight[n] * d);
          }
        pull(in, row, gradient, d_score);
        for (size_t n = 0; n < row.seen.size(); ++n) {
          add(d_bias, {b, h, i, row.seen[n]}, d_score[n]);
          add_score(in, at, row.seen[n], d_score[n], dq, dk);
        }
      }
}

void RowReference::pull(const Tensors&, const Row&, const std::vector<double>&, std::vector<double>&) const {
  throw Error(ErrorKind::kUnsupported, "reference", "backward", "", "not defined");
}

double RowReference::score(const Tensors& in, const Row& row, const Keys& keys, int64_t j) const {
  const View& q = required(in, "q");
  double s = 0;
  for (int64_t c = 0; c < q.shape[3]; ++c) s += element(q, {row.b, row.h, row.i, c}) * keys.k(j, c);
  return scale(in) * s;
}

void RowReference::add_score(const Tensors& in, const Query& at, int64_t j, double d, const View& dq,
                             const View& dk) const {
  add_dot(required(in, "q"), dq, dk, at, j, scale(in) * d);
}

double RowReference::scale(const Tensors& in) const {
  return scale_ == 0 ? 1 / std::sqrt(static_cast<double>(required(in, "q").shape[3])) : scale_;
}

}  // namespace attend::reference
