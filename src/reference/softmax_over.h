#pragma once
// Softmax attention over scores and values that a definition gives, one query after another.
#include <cmath>
#include <limits>
#include <vector>

#include "reference/inputs.h"

namespace attend::reference {

// One query and the keys it may see.
struct Query {
  int64_t b, h, i, position;
  const Keys& keys;
};

// f(query) for all of them.
template <class F>
void each_query(const Tensors& in, F f) {
  const View& q = required(in, "q");
  for (int64_t b = 0; b < q.shape[0]; ++b)
    for (int64_t h = 0; h < q.shape[1]; ++h)
      for (int64_t i = 0; i < q.shape[2]; ++i) {
        const Keys keys(in, b, h, q.shape[1], q.shape[0]);
        f(Query{b, h, i, query_position(in, b, i), keys});
      }
}

inline double dot(const View& q, const Query& at, int64_t j) {
  double sum = 0;
  for (int64_t c = 0; c < q.shape[3]; ++c) sum += element(q, {at.b, at.h, at.i, c}) * at.keys.k(j, c);
  return sum;
}

inline double scale_of(double option, int64_t d) {
  return option == 0 ? 1 / std::sqrt(static_cast<double>(d)) : option;
}

// out[i] = sum_j w[j] value(query, j, c), w = softmax over visible j of score(query, j); lse its logarithm. A key is
// visible if not causal or j <= position.
template <class Score, class Value>
void softmax_over(const Tensors& in, const Tensors& out, bool causal, Score score, Value value) {
  constexpr double kHidden = -std::numeric_limits<double>::infinity();
  const View result = optional(out, "out"), lse = optional(out, "lse");
  each_query(in, [&](const Query& at) {
    const Keys& keys = at.keys;
    std::vector<double> s(static_cast<size_t>(keys.count), kHidden);
    double top = kHidden, total = 0;
    for (int64_t j = 0; j < keys.count; ++j) {
      if (causal && keys.position(j) > at.position) continue;
      s[static_cast<size_t>(j)] = score(at, j);
      top = std::max(top, s[static_cast<size_t>(j)]);
    }
    auto hidden = [&](int64_t j) { return s[static_cast<size_t>(j)] == kHidden; };
    auto weight = [&](int64_t j) { return std::exp(s[static_cast<size_t>(j)] - top); };
    for (int64_t j = 0; j < keys.count; ++j)
      if (!hidden(j)) total += weight(j);
    if (lse.data) store(lse, {at.b, at.h, at.i}, total == 0 ? kHidden : top + std::log(total));
    for (int64_t c = 0; result.data && c < result.shape[3]; ++c) {
      double sum = 0;
      for (int64_t j = 0; j < keys.count; ++j)
        if (!hidden(j)) sum += weight(j) * value(at, j, c);
      store(result, {at.b, at.h, at.i, c}, total == 0 ? 0 : sum / total);
    }
  });
}

template <class Score>
void softmax_over(const Tensors& in, const Tensors& out, bool causal, Score score) {
  softmax_over(in, out, causal, score, [](const Query& at, int64_t j, int64_t c) { return at.keys.v(j, c); });
}

}  // namespace attend::reference
