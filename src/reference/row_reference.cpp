#include "reference/row_reference.h"

#include <cmath>

namespace attend::reference {

std::map<std::string, TensorSpec, std::less<>> RowReference::infer(const Tensors& in) const {
  auto specs = attention_outputs(in);
  specs.erase("lse");
  return specs;
}

void RowReference::forward(const Tensors& in, const Tensors& out, Form, Context&) const {
  const View &q = required(in, "q"), &result = required(out, "out"), bias = optional(in, "bias");
  for (int64_t b = 0; b < q.shape[0]; ++b)
    for (int64_t h = 0; h < q.shape[1]; ++h)
      for (int64_t i = 0; i < q.shape[2]; ++i) {
        const Keys keys(in, b, h, q.shape[1], q.shape[0]);
        Row row{b, h, i, query_position(in, b, i), {}, {}};
        for (int64_t j = 0; j < keys.count; ++j) {
          if (causal_ && keys.position(j) > row.position) continue;
          row.seen.push_back(j);
          row.weight.push_back(score(in, row, keys, j));
          if (bias.data) row.weight.back() += element(bias, {b, h, i, j});
        }
        if (!row.seen.empty()) weigh(in, row);
        for (int64_t c = 0; c < result.shape[3]; ++c) {
          double sum = 0;
          for (size_t at = 0; at < row.seen.size(); ++at)
            if (row.weight[at] != 0) sum += row.weight[at] * keys.v(row.seen[at], c);
          store(result, {b, h, i, c}, sum);
        }
      }
}

double RowReference::score(const Tensors& in, const Row& row, const Keys& keys, int64_t j) const {
  const View& q = required(in, "q");
  double s = 0;
  for (int64_t c = 0; c < q.shape[3]; ++c) s += element(q, {row.b, row.h, row.i, c}) * keys.k(j, c);
  return scale(in) * s;
}

double RowReference::scale(const Tensors& in) const {
  return scale_ == 0 ? 1 / std::sqrt(static_cast<double>(required(in, "q").shape[3])) : scale_;
}

}  // namespace attend::reference
