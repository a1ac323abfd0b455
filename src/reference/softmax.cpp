#include "attend/reference/softmax.h"

#include <cmath>
#include <limits>
#include <vector>

#include "reference/gradients.h"

namespace attend {
namespace {

using namespace reference;

constexpr double kHidden = -std::numeric_limits<double>::infinity();

// One query: its scores and what the softmax divides by.
struct Row {
  std::vector<double> score;  // [Tk], kHidden where the key takes no part
  std::vector<double> slope;  // d score / d dot product
  double top = kHidden, total = 0;
  bool empty() const { return top == kHidden && total == 0; }
  double offset() const { return top == kHidden ? 0 : top; }
  double lse() const { return empty() ? kHidden : offset() + std::log(total); }
  double weight(int64_t j) const { return std::exp(score[static_cast<size_t>(j)] - offset()) / total; }
  bool sees(int64_t j) const { return score[static_cast<size_t>(j)] != kHidden; }
};

class SoftmaxReference : public Operator {
 public:
  explicit SoftmaxReference(const SoftmaxOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    return attention_outputs(in);
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const View &q = required(in, "q"), result = optional(out, "out"), lse = optional(out, "lse");
    each_row(q, [&](int64_t b, int64_t h, int64_t i) {
      const Keys keys(in, b, h, q.shape[1], q.shape[0]);
      const Row r = row(in, keys, b, h, i);
      if (lse.data) store(lse, {b, h, i}, r.lse());
      if (!result.data) return;
      std::vector<double> sums(static_cast<size_t>(result.shape[3]), 0);
      for (int64_t j = 0; j < keys.count; ++j) {
        if (!r.sees(j)) continue;
        const double weight = r.weight(j);
        for (size_t c = 0; c < sums.size(); ++c) sums[c] += weight * keys.v(j, static_cast<int64_t>(c));
      }
      for (size_t c = 0; c < sums.size(); ++c)
        store(result, {b, h, i, static_cast<int64_t>(c)}, r.empty() ? 0 : sums[c]);
    });
  }

  // d out / d score of a softmax: dS = P (dP - sum_j P dP), dP = dO . v; d lse / d score = P. (Dao et al. 2022,
  // arXiv:2205.14135, appendix B.2.)
  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override {
    const View& q = required(in, "q");
    const View d_out = optional(grad_out, "out"), d_lse = optional(grad_out, "lse");
    const View dq = optional(grad_in, "q"), dk = optional(grad_in, "k"), dv = optional(grad_in, "v"),
               d_bias = optional(grad_in, "bias"), d_sink = optional(grad_in, "sink_logits"),
               sinks = optional(in, "sink_logits");
    for (const View& grad : {dq, dk, dv, d_bias, d_sink}) clear(grad);
    each_row(q, [&](int64_t b, int64_t h, int64_t i) {
      const Keys keys(in, b, h, q.shape[1], q.shape[0]);
      const Row r = row(in, keys, b, h, i);
      if (r.empty()) return;
      std::vector<double> d_weight(static_cast<size_t>(keys.count), 0);
      double mean = 0;
      for (int64_t j = 0; j < keys.count; ++j) {
        if (!r.sees(j)) continue;
        double& d = d_weight[static_cast<size_t>(j)];
        for (int64_t c = 0; d_out.data && c < d_out.shape[3]; ++c) d += element(d_out, {b, h, i, c}) * keys.v(j, c);
        mean += r.weight(j) * d;
      }
      const double from_lse = d_lse.data ? element(d_lse, {b, h, i}) : 0;
      const double scale = scale_of(q.shape[3]);
      for (int64_t j = 0; j < keys.count; ++j) {
        if (!r.sees(j)) continue;
        const double weight = r.weight(j), d_score = weight * (d_weight[static_cast<size_t>(j)] - mean + from_lse);
        add(d_bias, {b, h, i, j}, d_score);
        const double d_dot = d_score * r.slope[static_cast<size_t>(j)] * scale;
        for (int64_t c = 0; c < q.shape[3]; ++c) {
          add(dq, {b, h, i, c}, d_dot * keys.k(j, c));
          add(dk, {b, keys.head, j, c}, d_dot * element(q, {b, h, i, c}));
        }
        for (int64_t c = 0; d_out.data && dv.data && c < dv.shape[3]; ++c)
          add(dv, {b, keys.head, j, c}, weight * element(d_out, {b, h, i, c}));
      }
      if (d_sink.data) add(d_sink, {h}, std::exp(element(sinks, {h}) - r.offset()) / r.total * (from_lse - mean));
    });
  }

 private:
  template <class F>
  static void each_row(const View& q, F f) {
    for (int64_t b = 0; b < q.shape[0]; ++b)
      for (int64_t h = 0; h < q.shape[1]; ++h)
        for (int64_t i = 0; i < q.shape[2]; ++i) f(b, h, i);
  }

  double scale_of(int64_t d) const { return o_.scale == 0 ? 1 / std::sqrt(static_cast<double>(d)) : o_.scale; }

  bool visible(int64_t p, int64_t j, const View& documents, int64_t b) const {
    if (documents.data && p < 0) return false;
    if (documents.data && element(documents, {b, p}) != element(documents, {b, j})) return false;
    if (j < o_.prefix) return true;
    if (o_.causal && j > p) return false;
    return o_.window == 0 || p - j < o_.window || j < o_.sinks;
  }

  Row row(const Tensors& in, const Keys& keys, int64_t b, int64_t h, int64_t i) const {
    const View &q = required(in, "q"), bias = optional(in, "bias"), sinks = optional(in, "sink_logits"),
               documents = optional(in, "documents");
    const int64_t p = query_position(in, b, i);
    Row r;
    r.score.assign(static_cast<size_t>(keys.count), kHidden);
    r.slope.assign(static_cast<size_t>(keys.count), 1);
    for (int64_t j = 0; j < keys.count; ++j) {
      if (!visible(p, keys.position(j), documents, b)) continue;
      double s = 0;
      for (int64_t c = 0; c < q.shape[3]; ++c) s += element(q, {b, h, i, c}) * keys.k(j, c);
      s *= scale_of(q.shape[3]);
      if (o_.softcap != 0) {
        const double t = std::tanh(s / o_.softcap);
        s = o_.softcap * t;
        r.slope[static_cast<size_t>(j)] = 1 - t * t;
      }
      if (bias.data) s += element(bias, {b, h, i, j});
      r.score[static_cast<size_t>(j)] = s;
      if (s > r.top) r.top = s;
    }
    for (double s : r.score)
      if (s != kHidden) r.total += std::exp(s - r.offset());
    if (sinks.data && !r.empty()) r.total += std::exp(element(sinks, {h}) - r.offset());
    return r;
  }

  SoftmaxOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_softmax_reference(const SoftmaxOptions& options) {
  return std::make_unique<SoftmaxReference>(options);
}

}  // namespace attend
