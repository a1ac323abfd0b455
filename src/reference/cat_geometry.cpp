#include "attend/reference/cat_geometry.h"

#include "reference/softmax_over.h"

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

double euclidean_distance(const Dots& d) {
  const double square = d.xx + d.yy - 2 * d.xy;
  return std::sqrt(square < 0 ? 0 : square);
}

double hyperbolic_distance(const Dots& d, double c) {
  if (c == 0) return euclidean_distance(d);
  const double product = std::sqrt(1 + c * d.xx) * std::sqrt(1 + c * d.yy) - c * d.xy;
  return std::acosh(product < 1 ? 1 : product) / std::sqrt(c);
}

double angle(double cosine) {
  return std::acos(cosine > 1 ? 1 : cosine < -1 ? -1 : cosine);
}

double spherical_distance(const Dots& d, double c, bool directions) {
  if (directions) return angle(d.xx == 0 || d.yy == 0 ? 0 : d.xy / std::sqrt(d.xx * d.yy)) / std::sqrt(c);
  if (c == 0) return euclidean_distance(d);
  return angle((1 + c * d.xy) / (std::sqrt(1 + c * d.xx) * std::sqrt(1 + c * d.yy))) / std::sqrt(c);
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
    const View &q = required(in, "q"), &result = required(out, "out"), routing = optional(in, "routing");
    const double scale = scale_of(o_.scale, q.shape[3]), beta = o_.beta == 0 ? std::abs(scale) : o_.beta;
    auto by_distance = [&](double d) { return o_.squared ? -beta / 2 * d * d : -beta * d; };
    std::vector<double> sums(static_cast<size_t>(result.count()), 0), branch(sums.size());
    auto add = [&](int64_t g, auto score) {
      const View to = dense_view(branch.data(), DType::kF64, result.rank, result.shape);
      softmax_over(in, {{"out", to}}, o_.causal, score);
      size_t at = 0;
      for (int64_t b = 0; b < result.shape[0]; ++b)
        for (int64_t h = 0; h < result.shape[1]; ++h)
          for (int64_t i = 0; i < result.shape[2]; ++i) {
            const double weight = routing.data ? element(routing, {b, h, i, g}) : 1.0 / 3;
            for (int64_t c = 0; c < result.shape[3]; ++c, ++at)
              if (weight != 0) sums[at] += weight * branch[at];
          }
    };
    add(0, [&](const Query& at, int64_t j) { return scale * dot(q, at, j); });
    add(1, [&](const Query& at, int64_t j) { return by_distance(hyperbolic_distance(dots(q, at, j), o_.hyperbolic)); });
    add(2, [&](const Query& at, int64_t j) {
      return by_distance(spherical_distance(dots(q, at, j), o_.spherical, o_.directions));
    });
    size_t at = 0;
    for (int64_t b = 0; b < result.shape[0]; ++b)
      for (int64_t h = 0; h < result.shape[1]; ++h)
        for (int64_t i = 0; i < result.shape[2]; ++i)
          for (int64_t c = 0; c < result.shape[3]; ++c) store(result, {b, h, i, c}, sums[at++]);
  }

 private:
  CatGeometryOptions o_;
};

}  // namespace

std::unique_ptr<Operator> make_cat_geometry_reference(const CatGeometryOptions& options) {
  return std::make_unique<CatGeometryReference>(options);
}

}  // namespace attend
