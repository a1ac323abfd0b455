#include "attend/reference/cog.h"

#include "reference/gradients.h"

namespace attend {
namespace {

using namespace reference;

struct CogRow {
  std::vector<int64_t> seen;
  std::vector<double> size, sign;  // of each weight
  double lse = -std::numeric_limits<double>::infinity();
};

class CogReference : public Operator {
 public:
  explicit CogReference(const CogOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    return attention_outputs(in);
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const View result = optional(out, "out"), lse = optional(out, "lse");
    each_row(in, [&](const Query& at, const CogRow& row) {
      if (lse.data) store(lse, {at.b, at.h, at.i}, row.lse);
      for (int64_t c = 0; result.data && c < result.shape[3]; ++c) {
        double sum = 0;
        for (size_t n = 0; n < row.seen.size(); ++n) sum += row.sign[n] * row.size[n] * at.keys.v(row.seen[n], c);
        store(result, {at.b, at.h, at.i, c}, sum);
      }
    });
  }

  // Signs are constant where they have a derivative. With sizes p and signs t of weights w = t p, the gradient of a
  // score is that of its size times t:  p (g - t sum_j w[j] g[j]) of out, g[j] = dO . v[j], and w of lse.
  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override {
    const View &q = required(in, "q"), d_out = optional(grad_out, "out"), d_lse = optional(grad_out, "lse");
    const View dq = optional(grad_in, "q"), dk = optional(grad_in, "k"), dv = optional(grad_in, "v");
    for (const View& grad : {dq, dk, dv}) clear(grad);
    each_row(in, [&](const Query& at, const CogRow& row) {
      std::vector<double> gradient;
      double mean = 0;
      for (size_t n = 0; n < row.seen.size(); ++n) {
        double g = 0;
        for (int64_t c = 0; d_out.data && c < d_out.shape[3]; ++c) {
          g += element(d_out, {at.b, at.h, at.i, c}) * at.keys.v(row.seen[n], c);
          add(dv, {at.b, at.keys.head, row.seen[n], c},
              row.sign[n] * row.size[n] * element(d_out, {at.b, at.h, at.i, c}));
        }
        gradient.push_back(g);
        mean += row.sign[n] * row.size[n] * g;
      }
      if (d_lse.data) mean -= element(d_lse, {at.b, at.h, at.i});
      for (size_t n = 0; n < row.seen.size(); ++n)
        add_dot(q, dq, dk, at, row.seen[n],
                scale_of(o_.scale, q.shape[3]) * row.size[n] * (gradient[n] - row.sign[n] * mean));
    });
  }

 private:
  template <class F>
  void each_row(const Tensors& in, F f) const {
    const View& q = required(in, "q");
    each_query(in, [&](const Query& at) {
      const Keys& keys = at.keys;
      CogRow row;
      double top = 0, sum = 0;
      for (int64_t j = 0; j < keys.count; ++j) {
        if (o_.causal && keys.position(j) > at.position) continue;
        const double s = scale_of(o_.scale, q.shape[3]) * dot(q, at, j);
        row.seen.push_back(j);
        row.size.push_back(std::abs(s));
        row.sign.push_back(s > 0 ? 1 : s < 0 ? -1 : s);  // of a NaN, too
        top = std::max(top, row.size.back());
      }
      for (double& p : row.size) sum += p = std::exp(p - top);
      for (double& p : row.size) p /= sum;
      if (!row.seen.empty()) row.lse = top + std::log(sum);
      f(at, row);
    });
  }

  CogOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_cog_reference(const CogOptions& options) {
  return std::make_unique<CogReference>(options);
}

}  // namespace attend
