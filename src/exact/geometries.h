#pragma once
// The curved branches of cat-geometry: queries and keys as vectors whose dot products say how far apart they are, and
// the scores of these products.
#include <cmath>
#include <numbers>

#include "attend/exact/cat_geometry_options.h"
#include "attend/simd/hook.h"
#include "exact/elementary.h"
#include "exact/problem.h"

namespace attend::exact {

inline constexpr int64_t kGeometries = 3;

// arcsin(sqrt(w)) / sqrt(w) for w in [0, 1/2]: a Chebyshev fit of degree 8, error 2 in units of 2^-24.
[[gnu::always_inline]] inline float arcsine_ratio(float w) {
  float p = 0.126604229f;
  p = std::fma(p, w, -0.141247556f);
  p = std::fma(p, w, 0.111685589f);
  p = std::fma(p, w, -0.00881148502f);
  p = std::fma(p, w, 0.0362279974f);
  p = std::fma(p, w, 0.0440398417f);
  p = std::fma(p, w, 0.0750307441f);
  p = std::fma(p, w, 0.166666076f);
  return std::fma(p, w, 1.0f);
}

// ln(1 + t) for t >= 0, error 6 in units of 2^-24 also where 1 + t rounds; a NaN stays.
[[gnu::always_inline]] inline float log1p_of(float t) {
  const float y = 1 + t, lost = (t - (y - 1)) / y;
  return exact::log_of(y) + lost;
}

// The kernel's dot products of lifted vectors are s = (cosh(sqrt(c) d) - 1) / c, s = (1 - cos(sqrt(c) d)) / c on the
// sphere, and s = d^2 / 2 in flat space; what is below 0 is rounding.
[[gnu::always_inline]] inline float positive(float s) {
  return s < 0 ? 0 : s;
}

// sqrt(c) d from c s, by arcosh(1 + u) = ln(1 + u + sqrt(u (u + 2))).
[[gnu::always_inline]] inline float hyperbolic_angle(float u) {
  return log1p_of(u + std::sqrt(u) * std::sqrt(u + 2));
}

// The angle whose cosine is 1 - 2 z: 2 arcsin(sqrt(z)).
[[gnu::always_inline]] inline float spherical_angle(float z) {
  z = z > 1 ? 1 : z;
  const bool wide = z > 0.5f;
  const float w = wide ? 1 - z : z, half = std::sqrt(w) * arcsine_ratio(w);
  return 2 * (wide ? std::numbers::pi_v<float> / 2 - half : half);
}

enum class Space { kHyperboloid, kSphere, kDirections };

// x of d elements as one of d + 2, such that the dot product of a query's and a key's is s above.
inline void lift(const float* x, int64_t d, Space space, double c, bool key, float* to) {
  double square = 0;
  for (int64_t e = 0; e < d; ++e) square += static_cast<double>(x[e]) * static_cast<double>(x[e]);
  const double time = std::sqrt(1 + c * square), above = square / (1 + time);  // (time - 1) / c
  double factor = 1, last[2] = {above, 1};                                     // of a query
  if (space == Space::kHyperboloid && key) last[0] = time, last[1] = above;
  if (space == Space::kSphere) {
    factor = 1 / time;
    const double below = above / time;  // (1 - 1 / time) / c
    last[0] = key ? 1 : below;
    last[1] = key ? below : factor;
  }
  if (space == Space::kDirections) {
    factor = square == 0 ? 0 : 1 / std::sqrt(square);
    last[0] = 1, last[1] = 0;
  }
  if (key) factor = -factor;
  for (int64_t e = 0; e < d; ++e) to[e] = static_cast<float>(factor * static_cast<double>(x[e]));
  for (int64_t e = 0; e < 2; ++e) to[d + e] = static_cast<float>(last[e]);
}

// What the gradient `d` of lift(x) adds to that of x. A direction has none along itself, and a zero vector none at all.
inline void add_lift_gradient(const float* x, int64_t n, Space space, double c, bool key, const float* d, float* to) {
  double square = 0, along = 0;
  for (int64_t e = 0; e < n; ++e) {
    square += static_cast<double>(x[e]) * static_cast<double>(x[e]);
    along += static_cast<double>(x[e]) * static_cast<double>(d[e]);
  }
  const double time = std::sqrt(1 + c * square), sign = key ? -1 : 1;
  const double last[2] = {static_cast<double>(d[n]), static_cast<double>(d[n + 1])};
  double of_d = sign, of_x = 0;
  if (space == Space::kHyperboloid) of_x = (key ? c * last[0] + last[1] : last[0]) / time;
  if (space == Space::kSphere) {
    of_d = sign / time;
    of_x = (-sign * c * along + (key ? last[1] : last[0] - c * last[1])) / (time * time * time);
  }
  if (space == Space::kDirections) {
    of_d = square == 0 ? 0 : sign / std::sqrt(square);
    of_x = square == 0 ? 0 : -of_d * along / square;
  }
  for (int64_t e = 0; e < n; ++e)
    to[e] += static_cast<float>(of_d * static_cast<double>(d[e]) + of_x * static_cast<double>(x[e]));
}

// Scores of products s, and their derivatives. Of a distance there is none at 0 nor, on the sphere, at its far end: it
// counts as 0 there.
struct FlatScore {
  float beta;
  bool squared;
  [[gnu::always_inline]] inline float operator()(float s, int, int, int32_t, int32_t) const {
    return squared ? -beta * positive(s) : -beta * std::sqrt(2 * positive(s));
  }
};
struct FlatSlope {
  float beta;
  bool squared;
  [[gnu::always_inline]] inline float operator()(float s, int, int, int32_t, int32_t) const {
    const float root = std::sqrt(2 * positive(s));
    return squared ? -beta : root > 0 ? -beta / root : 0.0f;
  }
};

// `factor` times sqrt(c) d, or its square.
struct HyperbolicScore {
  float c, factor;
  bool squared;
  [[gnu::always_inline]] inline float operator()(float s, int, int, int32_t, int32_t) const {
    const float angle = hyperbolic_angle(c * positive(s));
    return -factor * (squared ? angle * angle : angle);
  }
};
struct HyperbolicSlope {
  float c, factor;
  bool squared;
  [[gnu::always_inline]] inline float operator()(float s, int, int, int32_t, int32_t) const {
    const float u = c * positive(s), root = std::sqrt(u) * std::sqrt(u + 2), by = root > 0 ? 1 / root : 0.0f;
    const float twice = root > 0 ? 2 * hyperbolic_angle(u) * by : 2.0f;
    return -factor * c * (squared ? twice : by);
  }
};

struct SphericalScore {
  float half, factor;
  bool squared;
  [[gnu::always_inline]] inline float operator()(float s, int, int, int32_t, int32_t) const {
    const float angle = spherical_angle(half * positive(s));
    return -factor * (squared ? angle * angle : angle);
  }
};
struct SphericalSlope {
  float half, factor;
  bool squared;
  [[gnu::always_inline]] inline float operator()(float s, int, int, int32_t, int32_t) const {
    const float z = half * positive(s), root = std::sqrt(z) * std::sqrt(positive(1 - z));
    const float by = root > 0 ? 1 / root : 0.0f, twice = z > 0 ? 2 * spherical_angle(z) * by : 4.0f;
    return -factor * half * (squared ? twice : by);
  }
};

// use(space, curvature, score, slope) of branch 1 or 2.
template <class Use>
void with_geometry(const CatGeometryOptions& o, int64_t d, int64_t branch, const Use& use) {
  const double scale = o.scale == 0 ? 1 / std::sqrt(static_cast<double>(d)) : o.scale,
               beta = o.beta == 0 ? std::abs(scale) : o.beta, c = branch == 1 ? o.hyperbolic : o.spherical;
  const float falls = static_cast<float>(o.squared ? beta / (2 * c) : beta / std::sqrt(c)),
              curvature = static_cast<float>(c);
  if (c == 0) {
    const float flat = static_cast<float>(beta);
    use(Space::kHyperboloid, c, FlatScore{flat, o.squared}, FlatSlope{flat, o.squared});
  } else if (branch == 1) {
    use(Space::kHyperboloid, c, HyperbolicScore{curvature, falls, o.squared},
        HyperbolicSlope{curvature, falls, o.squared});
  } else {
    const float half = o.directions ? 0.5f : static_cast<float>(c / 2);
    use(o.directions ? Space::kDirections : Space::kSphere, c, SphericalScore{half, falls, o.squared},
        SphericalSlope{half, falls, o.squared});
  }
}

// Queries and keys of all heads, lifted; the memory is the context's.
struct Lifted {
  View q, k;
};
Lifted lift_all(const Qkv& in, const Problem& p, Space space, double c, Context& context);

// Throws Error(kArgument), as the forward and the backward pass do.
Problem check_geometry(const Qkv& in, const View& routing, const CatGeometryOptions& options, const AttnOut& out);

// Weights of the branches, whose axes of 1 are repeated.
class Routing {
 public:
  explicit Routing(const View& routing) : view_(routing) {
    for (int a = 0; a < 3 && view_.data; ++a)
      if (view_.shape[a] == 1) view_.stride[a] = 0;
  }

  float operator()(int64_t b, int64_t h, int64_t i, int64_t g) const {
    return view_.data ? *view_.at<float>({b, h, i, g}) : 1.0f / 3;
  }

  bool taken(const Problem& p, int64_t g) const {
    for (int64_t b = 0; b < p.batch; ++b)
      for (int64_t h = 0; h < p.heads; ++h)
        for (int64_t i = 0; i < p.queries; ++i)
          if ((*this)(b, h, i, g) != 0) return true;
    return false;
  }

 private:
  View view_;
};

}  // namespace attend::exact
