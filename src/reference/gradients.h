#pragma once
// What backward passes of definitions share: gradients are f64 and dense, in the shapes of their inputs.
#include <initializer_list>
#include <vector>

#include "reference/softmax_over.h"

namespace attend::reference {

inline void clear(const View& v) {
  for (int64_t i = 0; v.data && i < v.count(); ++i) v.as<double>()[i] = 0;
}

// Axes of 1 gather what they repeat; an absent view takes nothing.
inline void add(const View& v, std::initializer_list<int64_t> index, double x) {
  if (!v.data) return;
  int axis = 0;
  int64_t at = 0;
  for (int64_t i : index) {
    at = at * v.shape[axis] + (v.shape[axis] == 1 ? 0 : i);
    ++axis;
  }
  v.as<double>()[at] += x;
}

// Of factor * dot(q[i], k[j]): what `d` adds to the gradients of q and k.
inline void add_dot(const View& q, const View& dq, const View& dk, const Query& at, int64_t j, double d) {
  for (int64_t c = 0; c < q.shape[3]; ++c) {
    add(dq, {at.b, at.h, at.i, c}, d * at.keys.k(j, c));
    add(dk, {at.b, at.keys.head, j, c}, d * element(q, {at.b, at.h, at.i, c}));
  }
}

// Gradients of softmax_over(): that of each score, d out / d s[j] = w[j] (g[j] - sum_k w[k] g[k]) with g[j] = dO .
// value[j], and d lse / d s[j] = w[j], goes to use(query, j, gradient); that of each element of a value, w[j] dO[c], to
// use_value(query, j, c, gradient). `more` joins the denominators.
template <class Score, class Value, class Use, class UseValue>
void softmax_over_backward(const Tensors& in, const Tensors& grad_out, bool causal, Score score, Value value, Use use,
                           UseValue use_value, double more = 0) {
  const View d_out = optional(grad_out, "out"), d_lse = optional(grad_out, "lse");
  each_query(in, [&](const Query& at) {
    const Keys& keys = at.keys;
    std::vector<int64_t> seen;
    std::vector<double> weight, gradient;
    double top = -std::numeric_limits<double>::infinity(), total = 0, mean = 0;
    for (int64_t j = 0; j < keys.count; ++j) {
      if (causal && keys.position(j) > at.position) continue;
      const double s = score(at, j);
      if (s == -std::numeric_limits<double>::infinity()) continue;
      seen.push_back(j);
      weight.push_back(s);
      top = std::max(top, s);
    }
    if (more > 0) top = std::max(top, 0.0), total = more * std::exp(-top);
    for (double& w : weight) total += w = std::exp(w - top);
    for (size_t n = 0; n < seen.size(); ++n) {
      double g = 0;
      for (int64_t c = 0; d_out.data && c < d_out.shape[3]; ++c)
        g += element(d_out, {at.b, at.h, at.i, c}) * value(at, seen[n], c);
      weight[n] /= total;
      mean += weight[n] * g;
      gradient.push_back(g);
    }
    for (size_t n = 0; n < seen.size(); ++n) {
      use(at, seen[n], weight[n] * (gradient[n] - mean + (d_lse.data ? element(d_lse, {at.b, at.h, at.i}) : 0)));
      for (int64_t c = 0; d_out.data && c < d_out.shape[3]; ++c)
        use_value(at, seen[n], c, weight[n] * element(d_out, {at.b, at.h, at.i, c}));
    }
  });
}

// The same where values are those of the keys, whose gradient is written to dv.
template <class Score, class Use>
void softmax_over_backward(const Tensors& in, const Tensors& grad_out, const View& dv, bool causal, Score score,
                           Use use, double more = 0) {
  clear(dv);
  softmax_over_backward(
      in, grad_out, causal, score, [](const Query& at, int64_t j, int64_t c) { return at.keys.v(j, c); }, use,
      [&](const Query& at, int64_t j, int64_t c, double d) {
        add(dv, {at.b, at.keys.head, j, c}, d);
      },
      more);
}

// The same where a score is the dot product times `scale` (0: 1/sqrt(D)), and more: writes the gradients of q, k and v;
// what else the gradients of scores are for, use() does.
template <class Score, class Use>
void dot_softmax_backward(const Tensors& in, const Tensors& grad_out, const Tensors& grad_in, bool causal, double scale,
                          Score score, Use use, double more = 0) {
  const View &q = required(in, "q"), dq = optional(grad_in, "q"), dk = optional(grad_in, "k");
  for (const View& grad : {dq, dk}) clear(grad);
  softmax_over_backward(
      in, grad_out, optional(grad_in, "v"), causal, score,
      [&](const Query& at, int64_t j, double d) {
        add_dot(q, dq, dk, at, j, scale_of(scale, q.shape[3]) * d);
        use(at, j, d);
      },
      more);
}

}  // namespace attend::reference
