#include "attend/reference/dcmha.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "reference/gradients.h"

namespace attend {
namespace {

using reference::element;

class DcmhaReference : public Operator {
 public:
  explicit DcmhaReference(const DcmhaOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    auto specs = reference::attention_outputs(in);
    specs.erase("lse");
    return specs;
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const View& result = reference::required(out, "out");
    each_query(in, [&](const Block& block) {
      for (int64_t h = 0; h < result.shape[1]; ++h)
        for (int64_t c = 0; c < result.shape[3]; ++c) {
          const reference::Keys keys = keys_of(in, block.b, h);
          double sum = 0;
          for (size_t at = 0; at < block.seen.size(); ++at)
            sum += block.composed[at][static_cast<size_t>(h)] * keys.v(block.seen[at], c);
          reference::store(result, {block.b, h, block.i, c}, sum);
        }
    });
  }

  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override {
    using reference::add, reference::optional;
    const View &q = reference::required(in, "q"), &d_out = reference::required(grad_out, "out"),
               dq = optional(grad_in, "q"), dk = optional(grad_in, "k"), dv = optional(grad_in, "v");
    for (const auto& each : grad_in) reference::clear(std::get<View>(each.second));
    const size_t heads = static_cast<size_t>(q.shape[1]);
    each_query(in, [&](const Block& block) {
      std::vector<std::vector<double>> d_weight;
      for (size_t at = 0; at < block.seen.size(); ++at) {
        std::vector<double> d(heads, 0);
        for (size_t h = 0; h < heads; ++h) {
          const int64_t head = static_cast<int64_t>(h);
          const reference::Keys keys = keys_of(in, block.b, head);
          for (int64_t c = 0; c < d_out.shape[3]; ++c) {
            const double loss = element(d_out, {block.b, head, block.i, c});
            d[h] += loss * keys.v(block.seen[at], c);
            add(dv, {block.b, keys.head, block.seen[at], c}, block.composed[at][h] * loss);
          }
        }
        d_weight.push_back(pull(in, grad_in, "post_", block.b, block.i, block.seen[at], block.weight[at], d));
      }
      std::vector<double> mean(heads, 0);
      for (size_t at = 0; at < block.seen.size(); ++at)
        for (size_t h = 0; h < heads; ++h) mean[h] += block.weight[at][h] * d_weight[at][h];
      for (size_t at = 0; at < block.seen.size(); ++at) {
        std::vector<double> d(heads);
        for (size_t h = 0; h < heads; ++h) d[h] = block.weight[at][h] * (d_weight[at][h] - mean[h]);
        d = pull(in, grad_in, "pre_", block.b, block.i, block.seen[at], block.score[at], d);
        for (size_t h = 0; h < heads; ++h) {
          const reference::Keys keys = keys_of(in, block.b, static_cast<int64_t>(h));
          reference::add_dot(q, dq, dk, {block.b, static_cast<int64_t>(h), block.i, 0, keys}, block.seen[at],
                             reference::scale_of(o_.scale, q.shape[3]) * d[h]);
        }
      }
    });
  }

 private:
  // One query of all heads; [visible key][head].
  struct Block {
    int64_t b, i;
    std::vector<int64_t> seen;
    std::vector<std::vector<double>> score, weight, composed;
  };

  static reference::Keys keys_of(const Tensors& in, int64_t b, int64_t h) {
    const View& q = reference::required(in, "q");
    return reference::Keys(in, b, h, q.shape[1], q.shape[0]);
  }

  template <class F>
  void each_query(const Tensors& in, F f) const {
    const View& q = reference::required(in, "q");
    const int64_t heads = q.shape[1], d = q.shape[3];
    for (int64_t b = 0; b < q.shape[0]; ++b)
      for (int64_t i = 0; i < q.shape[2]; ++i) {
        const int64_t position = reference::query_position(in, b, i);
        Block block{b, i, {}, {}, {}, {}};
        for (int64_t j = 0; j < keys_of(in, b, 0).count; ++j) {
          if (o_.causal && j > position) continue;
          std::vector<double> score;
          for (int64_t h = 0; h < heads; ++h) {
            const reference::Keys keys = keys_of(in, b, h);
            score.push_back(reference::scale_of(o_.scale, d) * reference::dot(q, {b, h, i, 0, keys}, j));
          }
          block.weight.push_back(compose(in, "pre_", b, i, j, score));
          block.score.push_back(std::move(score));
          block.seen.push_back(j);
        }
        for (size_t h = 0; h < static_cast<size_t>(heads); ++h) {
          double top = -std::numeric_limits<double>::infinity(), sum = 0;
          for (const auto& column : block.weight) top = std::max(top, column[h]);
          for (auto& column : block.weight) sum += column[h] = std::exp(column[h] - top);
          for (auto& column : block.weight) column[h] /= sum;
        }
        for (size_t at = 0; at < block.seen.size(); ++at)
          block.composed.push_back(compose(in, "post_", b, i, block.seen[at], block.weight[at]));
        f(block);
      }
  }

  static std::vector<double> compose(const Tensors& in, const std::string& side, int64_t b, int64_t i, int64_t j,
                                     const std::vector<double>& x) {
    const View base = reference::optional(in, side + "w");
    const View &q1 = reference::required(in, side + "q1"), &q2 = reference::required(in, side + "q2"),
               &qd = reference::required(in, side + "qd"), &k1 = reference::required(in, side + "k1"),
               &k2 = reference::required(in, side + "k2"), &kd = reference::required(in, side + "kd");
    const int64_t heads = static_cast<int64_t>(x.size()), ranks = q1.shape[2];
    std::vector<double> y(x.size(), 0);
    for (int64_t h = 0; h < heads; ++h) {
      double& to = y[static_cast<size_t>(h)];
      for (int64_t g = 0; g < heads; ++g) {
        double map = base.data ? element(base, {g, h}) : g == h ? 1 : 0;
        if (g == h) map += element(qd, {b, i, h}) + element(kd, {b, j, h});
        for (int64_t r = 0; r < ranks; ++r)
          map += element(q1, {b, i, r, g}) * element(q2, {b, i, r, h}) +
                 element(k1, {b, j, r, g}) * element(k2, {b, j, r, h});
        to += map * x[static_cast<size_t>(g)];
      }
    }
    return y;
  }

  // Gradients d of what a map makes of x, to those of x; adds those of the map's factors.
  static std::vector<double> pull(const Tensors& in, const Tensors& grad_in, const std::string& side, int64_t b,
                                  int64_t i, int64_t j, const std::vector<double>& x, const std::vector<double>& d) {
    using reference::add, reference::optional;
    const View base = optional(in, side + "w");
    const View &q1 = reference::required(in, side + "q1"), &q2 = reference::required(in, side + "q2"),
               &qd = reference::required(in, side + "qd"), &k1 = reference::required(in, side + "k1"),
               &k2 = reference::required(in, side + "k2"), &kd = reference::required(in, side + "kd"),
               d_base = optional(grad_in, side + "w"), d_q1 = optional(grad_in, side + "q1"),
               d_q2 = optional(grad_in, side + "q2"), d_qd = optional(grad_in, side + "qd"),
               d_k1 = optional(grad_in, side + "k1"), d_k2 = optional(grad_in, side + "k2"),
               d_kd = optional(grad_in, side + "kd");
    const int64_t heads = static_cast<int64_t>(x.size());
    std::vector<double> back(x.size(), 0);
    for (int64_t g = 0; g < heads; ++g)
      for (int64_t h = 0; h < heads; ++h) {
        const double d_map = x[static_cast<size_t>(g)] * d[static_cast<size_t>(h)];
        double map = base.data ? element(base, {g, h}) : g == h ? 1 : 0;
        add(d_base, {g, h}, d_map);
        if (g == h) {
          map += element(qd, {b, i, h}) + element(kd, {b, j, h});
          add(d_qd, {b, i, h}, d_map);
          add(d_kd, {b, j, h}, d_map);
        }
        for (int64_t r = 0; r < q1.shape[2]; ++r) {
          map += element(q1, {b, i, r, g}) * element(q2, {b, i, r, h}) +
                 element(k1, {b, j, r, g}) * element(k2, {b, j, r, h});
          add(d_q1, {b, i, r, g}, d_map * element(q2, {b, i, r, h}));
          add(d_q2, {b, i, r, h}, d_map * element(q1, {b, i, r, g}));
          add(d_k1, {b, j, r, g}, d_map * element(k2, {b, j, r, h}));
          add(d_k2, {b, j, r, h}, d_map * element(k1, {b, j, r, g}));
        }
        back[static_cast<size_t>(g)] += map * d[static_cast<size_t>(h)];
      }
    return back;
  }

  DcmhaOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_dcmha_reference(const DcmhaOptions& options) {
  return std::make_unique<DcmhaReference>(options);
}

}  // namespace attend
