#pragma once
// Queries and keys of definitions with rotary positions: rotated vectors, their dot products, and gradients turned
// back.
#include <optional>
#include <vector>

#include "reference/gradients.h"
#include "reference/rope_pairs.h"

namespace attend::reference {

class Rotated {
 public:
  Rotated(const RopeOptions& options, const Tensors& in) : o_(options), in_(in) {}

  int64_t width() const { return required(in_, "q").shape[3]; }

  // Of the rotated query and key, not scaled; the query at its own position or at another one.
  double dot(const Query& at, int64_t j) { return dot(at, j, at.position); }
  double dot(const Query& at, int64_t j, int64_t position) {
    const View& q = required(in_, "q");
    const int64_t d = q.shape[3];
    if (batch_ != at.b) rope_.emplace(rope_of(at.b));
    if (batch_ != at.b || head_ != at.keys.head) {
      keys_.clear();
      for (int64_t t = 0; t < at.keys.count; ++t)
        keys_.push_back(rope_->rotated(d, static_cast<double>(t), [&](int64_t c) { return at.keys.k(t, c); }));
    }
    if (const int64_t now = (at.b * q.shape[1] + at.h) * q.shape[2] + at.i; row_ != now || position_ != position) {
      query_ = rope_->rotated(d, static_cast<double>(position), [&](int64_t c) {
        return element(q, {at.b, at.h, at.i, c});
      });
      row_ = now;
      position_ = position;
    }
    batch_ = at.b;
    head_ = at.keys.head;
    double sum = 0;
    for (size_t c = 0; c < query_.size(); ++c) sum += query_[c] * keys_[static_cast<size_t>(j)][c];
    return sum;
  }

  // Gradients of softmax attention whose scores are score(query, j) with a derivative slope(query, j) by the dot
  // product above. The gradient of a rotated vector, turned back, is that of the vector. The query stands at
  // position(query, j).
  template <class Score, class Slope>
  void backward(const Tensors& grad_out, const Tensors& grad_in, bool causal, Score score, Slope slope) {
    backward(grad_out, grad_in, causal, score, slope, [](const Query& at, int64_t) { return at.position; });
  }
  template <class Score, class Slope, class Position>
  void backward(const Tensors& grad_out, const Tensors& grad_in, bool causal, Score score, Slope slope,
                Position position) {
    const View &q = required(in_, "q"), &k = required(in_, "k");
    const int64_t d = q.shape[3];
    std::vector<double> dq(static_cast<size_t>(q.count()), 0), dk(static_cast<size_t>(k.count()), 0);
    softmax_over_backward(
        in_, grad_out, optional(grad_in, "v"), causal, score, [&](const Query& at, int64_t j, double gradient) {
          const double g = gradient * slope(at, j);
          const int64_t x = position(at, j);
          dot(at, j, x);  // turns the query
          const std::vector<double> to_q = turned_back(*rope_, keys_[static_cast<size_t>(j)].data(), d, x);
          const int64_t query = (at.b * q.shape[1] + at.h) * q.shape[2] + at.i,
                        key = (at.b * k.shape[1] + at.keys.head) * k.shape[2] + j;
          for (int64_t c = 0; c < d; ++c) {
            dq[static_cast<size_t>(query * d + c)] += g * to_q[static_cast<size_t>(c)];
            dk[static_cast<size_t>(key * d + c)] += g * query_[static_cast<size_t>(c)];
          }
        });
    write(dq, optional(grad_in, "q"));
    for (int64_t b = 0; b < k.shape[0]; ++b) {
      const Rope rope = rope_of(b);
      for (int64_t row = b * k.shape[1] * k.shape[2]; row < (b + 1) * k.shape[1] * k.shape[2]; ++row) {
        const std::vector<double> x = turned_back(rope, dk.data() + row * d, d, row % k.shape[2]);
        std::copy(x.begin(), x.end(), dk.begin() + row * d);
      }
    }
    write(dk, optional(grad_in, "k"));
  }

 private:
  Rope rope_of(int64_t b) const {
    const View bases = optional(in_, "bases");
    RopeOptions options = o_;
    if (bases.data) options.base = element(bases, {b});
    return Rope(options, required(in_, "q").shape[3], required(in_, "k").shape[2], optional(in_, "short_factors"),
                optional(in_, "long_factors"));
  }

  static std::vector<double> turned_back(const Rope& rope, const double* x, int64_t d, int64_t position) {
    return rope.rotated(d, -static_cast<double>(position), [&](int64_t c) { return x[c]; });
  }

  static void write(const std::vector<double>& from, const View& to) {
    for (size_t n = 0; to.data && n < from.size(); ++n) to.as<double>()[n] = from[n];
  }

  RopeOptions o_;
  const Tensors& in_;
  std::optional<Rope> rope_;
  std::vector<double> query_;
  std::vector<std::vector<double>> keys_;  // of the batch entry and head at hand
  int64_t batch_ = -1, head_ = -1, row_ = -1, position_ = 0;
};

}  // namespace attend::reference
