// The definition in double precision: the equations of the slope, solved by Cholesky's method.
#include "attend/reference/lla.h"

#include <cmath>
#include <limits>
#include <vector>

#include "reference/gradients.h"

namespace attend {
namespace {

using namespace reference;

class LlaReference : public Operator {
 public:
  explicit LlaReference(const LlaOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    auto specs = attention_outputs(in);
    specs.erase("lse");
    return specs;
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const View& result = required(out, "out");
    each_row(in, [&](const Query& at, const Row& row) {
      for (int64_t c = 0; c < result.shape[3]; ++c) store(result, {at.b, at.h, at.i, c}, row.output(at, c));
    });
  }

  // By the chain of the definition's own quantities: (M + ridge I) rho = m gives dm = (M + ridge I)^-1 drho and dM =
  // -dm rho'.
  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override {
    const View &q = required(in, "q"), &d_out = required(grad_out, "out"), dq = optional(grad_in, "q"),
               dk = optional(grad_in, "k"), dv = optional(grad_in, "v");
    const double scale = scale_of(o_.scale, q.shape[3]);
    for (const View& grad : {dq, dk, dv}) clear(grad);
    each_row(in, [&](const Query& at, const Row& row) {
      const size_t n = row.rho.size();
      std::vector<double> d_gain(row.seen.size(), 0), d_m(n, 0), d_weight;
      for (int64_t c = 0; c < d_out.shape[3]; ++c) {
        const double d = element(d_out, {at.b, at.h, at.i, c}), out = row.output(at, c);
        for (size_t j = 0; j < row.seen.size(); ++j) {
          d_gain[j] += d * (at.keys.v(row.seen[j], c) - out) / row.share;
          add(dv, {at.b, at.keys.head, row.seen[j], c}, d * row.weight[j] * row.rise[j] / row.share);
        }
      }
      for (size_t j = 0; j < row.seen.size(); ++j)
        for (size_t c = 0; c < n; ++c) d_m[c] -= d_gain[j] * row.weight[j] * row.z[j][c];
      solve(row.factor, d_m);
      double mean = 0;
      for (size_t j = 0; j < row.seen.size(); ++j) {
        const double of_m = inner(d_m, row.z[j]), of_rho = inner(row.rho, row.z[j]);
        d_weight.push_back(d_gain[j] * row.rise[j] + of_m - of_m * of_rho);
        mean += row.weight[j] * d_weight[j];
        for (size_t c = 0; c < n; ++c) {
          const double dz = row.weight[j] * (-d_gain[j] * row.rho[c] + d_m[c] - d_m[c] * of_rho - row.rho[c] * of_m);
          add(dk, {at.b, at.keys.head, row.seen[j], static_cast<int64_t>(c)}, dz);
          add(dq, {at.b, at.h, at.i, static_cast<int64_t>(c)}, -dz);
        }
      }
      for (size_t j = 0; j < row.seen.size(); ++j)
        add_dot(q, dq, dk, at, row.seen[j], scale * row.weight[j] * (d_weight[j] - mean));
    });
  }

 private:
  using Vector = std::vector<double>;

  static double inner(const Vector& x, const Vector& y) {
    double sum = 0;
    for (size_t c = 0; c < x.size(); ++c) sum += x[c] * y[c];
    return sum;
  }

  struct Row {
    std::vector<int64_t> seen;
    Vector weight, rho;
    std::vector<Vector> z, factor;  // the factor of M + ridge I: rows of its lower triangle
    double share = 0;               // sum of the weights times what the plane makes of them

    Vector rise;  // 1 - dot(rho, z)

    double output(const Query& at, int64_t c) const {
      double sum = 0;
      for (size_t j = 0; j < seen.size(); ++j) sum += weight[j] * rise[j] * at.keys.v(seen[j], c);
      return seen.empty() ? 0 : sum / share;
    }
  };

  // x to what the matrix of this factor makes x of.
  static void solve(const std::vector<Vector>& a, Vector& x) {
    for (size_t r = 0; r < x.size(); ++r) {
      for (size_t c = 0; c < r; ++c) x[r] -= a[r][c] * x[c];
      x[r] /= a[r][r];
    }
    for (size_t r = x.size(); r-- > 0;) {
      for (size_t up = r + 1; up < x.size(); ++up) x[r] -= a[up][r] * x[up];
      x[r] /= a[r][r];
    }
  }

  template <class F>
  void each_row(const Tensors& in, F f) const {
    each_query(in, [&](const Query& at) { f(at, row(required(in, "q"), at)); });
  }

  Row row(const View& q, const Query& at) const {
    const int64_t d = q.shape[3];
    const size_t n = static_cast<size_t>(d);
    Row row;
    double top = -std::numeric_limits<double>::infinity(), total = 0;
    for (int64_t j = 0; j < at.keys.count; ++j) {
      if (o_.causal && at.keys.position(j) > at.position) continue;
      row.seen.push_back(j);
      row.weight.push_back(scale_of(o_.scale, d) * dot(q, at, j));
      top = std::max(top, row.weight.back());
    }
    for (double& w : row.weight) total += w = std::exp(w - top);
    for (double& w : row.weight) w /= total;
    // M + ridge I and m, then Cholesky's factor.
    std::vector<Vector>& a = row.factor;
    a.assign(n, Vector(n, 0));
    row.rho.assign(n, 0);
    for (size_t j = 0; j < row.seen.size(); ++j) {
      row.z.emplace_back();
      for (int64_t c = 0; c < d; ++c) row.z[j].push_back(at.keys.k(row.seen[j], c) - element(q, {at.b, at.h, at.i, c}));
      for (size_t r = 0; r < n; ++r) {
        row.rho[r] += row.weight[j] * row.z[j][r];
        for (size_t c = 0; c <= r; ++c) a[r][c] += row.weight[j] * row.z[j][r] * row.z[j][c];
      }
    }
    for (size_t r = 0; r < n; ++r) {
      a[r][r] += o_.ridge;
      for (size_t c = 0; c <= r; ++c) {
        for (size_t e = 0; e < c; ++e) a[r][c] -= a[r][e] * a[c][e];
        a[r][c] = c == r ? std::sqrt(a[r][r]) : a[r][c] / a[c][c];
      }
    }
    solve(a, row.rho);
    for (size_t j = 0; j < row.seen.size(); ++j) {
      row.rise.push_back(1 - inner(row.rho, row.z[j]));
      row.share += row.weight[j] * row.rise[j];
    }
    return row;
  }

  LlaOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_lla_reference(const LlaOptions& options) {
  return std::make_unique<LlaReference>(options);
}

}  // namespace attend
