#include "attend/reference/rope.h"

#include <optional>

#include "reference/gradients.h"
#include "reference/rope_pairs.h"

namespace attend {
namespace {

using namespace reference;

class RopeReference : public Operator {
 public:
  RopeReference(const RopeOptions& rope, bool causal, double scale) : o_(rope), causal_(causal), scale_(scale) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    return attention_outputs(in);
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    Rotated rows(*this, in);
    softmax_over(in, out, causal_, [&](const Query& at, int64_t j) { return rows.score(at, j); });
  }

  // The gradient of a rotated vector, turned back, is that of the vector.
  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override {
    const View &q = required(in, "q"), &k = required(in, "k");
    const int64_t d = q.shape[3];
    std::vector<double> dq(static_cast<size_t>(q.count()), 0), dk(static_cast<size_t>(k.count()), 0);
    Rotated rows(*this, in);
    softmax_over_backward(
        in, grad_out, optional(grad_in, "v"), causal_, [&](const Query& at, int64_t j) { return rows.score(at, j); },
        [&](const Query& at, int64_t j, double gradient) {
          const size_t of_q = static_cast<size_t>(((at.b * q.shape[1] + at.h) * q.shape[2] + at.i) * d),
                       of_k = static_cast<size_t>(((at.b * k.shape[1] + at.keys.head) * k.shape[2] + j) * d);
          for (size_t c = 0; c < static_cast<size_t>(d); ++c) {
            dq[of_q + c] += gradient * scale_of(scale_, d) * rows.keys[static_cast<size_t>(j)][c];
            dk[of_k + c] += gradient * scale_of(scale_, d) * rows.query[c];
          }
        });
    turn_back(in, dq, q, optional(grad_in, "q"), [&](int64_t b, int64_t i) { return query_position(in, b, i); });
    turn_back(in, dk, k, optional(grad_in, "k"), [](int64_t, int64_t j) { return j; });
  }

 private:
  Rope rope_of(const Tensors& in, int64_t b) const {
    const View bases = optional(in, "bases");
    RopeOptions options = o_;
    if (bases.data) options.base = element(bases, {b});
    return Rope(options, required(in, "q").shape[3], required(in, "k").shape[2], optional(in, "short_factors"),
                optional(in, "long_factors"));
  }

  template <class Position>
  void turn_back(const Tensors& in, const std::vector<double>& from, const View& like, const View& to,
                 Position position) const {
    const int64_t d = like.shape[3];
    for (int64_t b = 0; to.data && b < like.shape[0]; ++b) {
      const Rope rope = rope_of(in, b);
      for (int64_t h = 0; h < like.shape[1]; ++h)
        for (int64_t t = 0; t < like.shape[2]; ++t) {
          const size_t row = static_cast<size_t>(((b * like.shape[1] + h) * like.shape[2] + t) * d);
          const std::vector<double> x = rope.rotated(d, -static_cast<double>(position(b, t)),
                                                     [&](int64_t c) { return from[row + static_cast<size_t>(c)]; });
          for (int64_t c = 0; c < d; ++c) store(to, {b, h, t, c}, x[static_cast<size_t>(c)]);
        }
    }
  }

  // The query at hand and the keys of its batch entry and head, rotated.
  struct Rotated {
    Rotated(const RopeReference& reference, const Tensors& tensors) : of(reference), in(tensors) {}

    double score(const Query& at, int64_t j) {
      const View& q = required(in, "q");
      const int64_t d = q.shape[3];
      if (batch != at.b) rope.emplace(of.rope_of(in, at.b));
      if (batch != at.b || head != at.keys.head) {
        keys.clear();
        for (int64_t t = 0; t < at.keys.count; ++t)
          keys.push_back(rope->rotated(d, static_cast<double>(t), [&](int64_t c) { return at.keys.k(t, c); }));
      }
      if (const int64_t now = (at.b * q.shape[1] + at.h) * q.shape[2] + at.i; row != now) {
        query = rope->rotated(d, static_cast<double>(at.position), [&](int64_t c) {
          return element(q, {at.b, at.h, at.i, c});
        });
        row = now;
      }
      batch = at.b;
      head = at.keys.head;
      double sum = 0;
      for (size_t c = 0; c < query.size(); ++c) sum += query[c] * keys[static_cast<size_t>(j)][c];
      return scale_of(of.scale_, d) * sum;
    }

    const RopeReference& of;
    const Tensors& in;
    std::optional<Rope> rope;
    std::vector<double> query;
    std::vector<std::vector<double>> keys;
    int64_t batch = -1, head = -1, row = -1;
  };

  RopeOptions o_;
  bool causal_;
  double scale_;
};

}  // namespace

std::unique_ptr<Operator> make_rope_reference(const RopeOptions& rope, bool causal, double scale) {
  return std::make_unique<RopeReference>(rope, causal, scale);
}

}  // namespace attend
