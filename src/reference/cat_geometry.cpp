#include "attend/reference/cat_geometry.h"

#include "reference/gradients.h"

namespace attend {
namespace {

using namespace reference;

// Dot products of a pair: of both, and of each with itself.
struct Dots {
  double xy, xx, yy;
};

Dots dots(const View& q, const Query& at, int64_t j) {
  Dots d{};
  for (int64_t c = 0; c < q.shape[3]; ++c) {
    const double x = element(q, {at.b, at.h, at.i, c}), y = at.keys.k(j, c);
    d.xy += x * y;
    d.xx += x * x;
    d.yy += y * y;
  }
  return d;
}

// f(xy, xx, yy) and its derivatives by each; 0 where it has none.
struct Distance {
  double value, xy = 0, xx = 0, yy = 0;
};

Distance euclidean_distance(const Dots& d) {
  const double square = d.xx + d.yy - 2 * d.xy;
  if (square <= 0) return {0};
  const double distance = std::sqrt(square);
  return {distance, -1 / distance, 0.5 / distance, 0.5 / distance};
}

Distance hyperbolic_distance(const Dots& d, double c) {
  if (c == 0) return euclidean_distance(d);
  const double x = std::sqrt(1 + c * d.xx), y = std::sqrt(1 + c * d.yy), product = x * y - c * d.xy;
  if (product <= 1) return {0};
  const double slope = 1 / std::sqrt((product - 1) * (product + 1)) / std::sqrt(c);
  return {std::acosh(product) / std::sqrt(c), -slope * c, slope * c / 2 * y / x, slope * c / 2 * x / y};
}

Distance spherical_distance(const Dots& d, double c, bool directions) {
  if (c == 0) return euclidean_distance(d);
  const double xx = directions ? d.xx : 1 + c * d.xx, yy = directions ? d.yy : 1 + c * d.yy,
               xy = directions ? d.xy : 1 + c * d.xy;
  if (xx == 0 || yy == 0) return {std::acos(0) / std::sqrt(c)};
  const double lengths = std::sqrt(xx * yy), cosine = xy / lengths;
  if (cosine >= 1 || cosine <= -1) return {cosine > 0 ? 0 : std::acos(-1) / std::sqrt(c)};
  const double slope = -1 / std::sqrt((1 - cosine) * (1 + cosine)) / std::sqrt(c) * (directions ? 1 : c);
  return {std::acos(cosine) / std::sqrt(c), slope / lengths, -slope * cosine / (2 * xx), -slope * cosine / (2 * yy)};
}

class CatGeometryReference : public Operator {
 public:
  explicit CatGeometryReference(const CatGeometryOptions& options) : o_(options) {}

  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors& in) const override {
    auto specs = attention_outputs(in);
    specs.erase("lse");
    return specs;
  }

  void forward(const Tensors& in, const Tensors& out, Form, Context&) const override {
    const View &result = required(out, "out"), routing = optional(in, "routing");
    each_branch(in, [&](int64_t g, auto score, auto) {
      const std::vector<double> branch = attend(in, result, score);
      size_t at = 0;
      each(result, [&](int64_t b, int64_t h, int64_t i, int64_t c) {
        const double weight = routing.data ? element(routing, {b, h, i, g}) : 1.0 / 3, part = branch[at++];
        store(result, {b, h, i, c}, (g == 0 ? 0 : element(result, {b, h, i, c})) + (weight == 0 ? 0 : weight * part));
      });
    });
  }

  void backward(const Tensors& in, const Tensors&, const Tensors& grad_out, const Tensors& grad_in,
                Context&) const override {
    const View &d_out = required(grad_out, "out"), routing = optional(in, "routing"), dq = optional(grad_in, "q"),
               dk = optional(grad_in, "k"), dv = optional(grad_in, "v"), d_routing = optional(grad_in, "routing");
    for (const View& grad : {dq, dk, dv, d_routing}) clear(grad);
    each_branch(in, [&](int64_t g, auto score, auto use) {
      const std::vector<double> branch = attend(in, d_out, score);
      std::vector<double> weighted(branch.size());
      size_t at = 0;
      each(d_out, [&](int64_t b, int64_t h, int64_t i, int64_t c) {
        const double d = element(d_out, {b, h, i, c});
        add(d_routing, {b, h, i, g}, d * branch[at]);
        weighted[at++] = d * (routing.data ? element(routing, {b, h, i, g}) : 1.0 / 3);
      });
      softmax_over_backward(
          in, {{"out", dense_view(weighted.data(), DType::kF64, d_out.rank, d_out.shape)}}, o_.causal, score,
          [](const Query& query, int64_t j, int64_t c) { return query.keys.v(j, c); },
          [&](const Query& query, int64_t j, double d) { use(query, j, d, dq, dk); },
          [&](const Query& query, int64_t j, int64_t c, double d) {
            add(dv, {query.b, query.keys.head, j, c}, d);
          });
    });
  }

 private:
  // f(branch, score, use): score(query, key), and use(query, key, its gradient, dq, dk).
  template <class F>
  void each_branch(const Tensors& in, F f) const {
    const View& q = required(in, "q");
    const double scale = scale_of(o_.scale, q.shape[3]), beta = o_.beta == 0 ? std::abs(scale) : o_.beta;
    f(
        0, [&](const Query& at, int64_t j) { return scale * dot(q, at, j); },
        [&](const Query& at, int64_t j, double d, const View& dq, const View& dk) {
          add_dot(q, dq, dk, at, j, scale * d);
        });
    for (int64_t g = 1; g < 3; ++g) {
      auto distance = [&](const Query& at, int64_t j) {
        const Dots d = dots(q, at, j);
        return g == 1 ? hyperbolic_distance(d, o_.hyperbolic) : spherical_distance(d, o_.spherical, o_.directions);
      };
      f(
          g,
          [&](const Query& at, int64_t j) {
            const double d = distance(at, j).value;
            return o_.squared ? -beta / 2 * d * d : -beta * d;
          },
          [&](const Query& at, int64_t j, double d, const View& dq, const View& dk) {
            const Distance s = distance(at, j);
            const double by = d * (o_.squared ? -beta * s.value : -beta);
            add_dot(q, dq, dk, at, j, by * s.xy);
            for (int64_t c = 0; c < q.shape[3]; ++c) {
              add(dq, {at.b, at.h, at.i, c}, 2 * by * s.xx * element(q, {at.b, at.h, at.i, c}));
              add(dk, {at.b, at.keys.head, j, c}, 2 * by * s.yy * at.keys.k(j, c));
            }
          });
    }
  }

  template <class Score>
  std::vector<double> attend(const Tensors& in, const View& like, Score score) const {
    std::vector<double> branch(static_cast<size_t>(like.count()));
    softmax_over(in, {{"out", dense_view(branch.data(), DType::kF64, like.rank, like.shape)}}, o_.causal, score);
    return branch;
  }

  template <class F>
  static void each(const View& v, F f) {
    for (int64_t b = 0; b < v.shape[0]; ++b)
      for (int64_t h = 0; h < v.shape[1]; ++h)
        for (int64_t i = 0; i < v.shape[2]; ++i)
          for (int64_t c = 0; c < v.shape[3]; ++c) f(b, h, i, c);
  }

  CatGeometryOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_cat_geometry_reference(const CatGeometryOptions& options) {
  return std::make_unique<CatGeometryReference>(options);
}

}  // namespace attend
