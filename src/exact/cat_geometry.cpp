#include "attend/exact/cat_geometry.h"

#include <fmt/format.h>

#include <cmath>
#include <numbers>

#include "attend/simd/dense.h"
#include "attend/simd/isa.h"
#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"
#include "exact/elementary.h"
#include "exact/parameter.h"
#include "exact/problem.h"
#include "exact/tasks.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "cat-geometry";
constexpr int64_t kBranches = 3;

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
void lift(const float* x, int64_t d, Space space, double c, bool key, float* to) {
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

void check_options(const CatGeometryOptions& o) {
  auto refuse = [](std::string_view name, double got, std::string_view rule) {
    throw Error(ErrorKind::kArgument, kOp, name, fmt::format("{}", got), rule);
  };
  if (!(o.beta >= 0 && o.beta <= 1e30)) refuse("beta", o.beta, "must be in 0..1e30");
  for (const auto& [name, c] : {std::pair{"hyperbolic", o.hyperbolic}, {"spherical", o.spherical}})
    if (!(c == 0 || (c >= 1e-12 && c <= 1e12))) refuse(name, c, "must be 0 or in 1e-12..1e12");
  if (o.directions && o.spherical == 0) refuse("spherical", 0, "must be above 0 for directions");
}

class Geometries {
 public:
  Geometries(const Qkv& in, const exact::Problem& problem, const View& routing, const CatGeometryOptions& options,
             const View& out, Context& context)
      : in_(in), p_(problem), routing_(routing), o_(options), out_(out), context_(context) {
    for (int a = 0; a < 3 && routing_.data; ++a)
      if (routing_.shape[a] == 1) routing_.stride[a] = 0;
  }

  void run() {
    const SoftmaxOptions plain{.causal = o_.causal, .scale = o_.scale};
    branch_ = dense_view(exact::kept_floats(context_, 0, p_.batch * p_.heads * p_.queries * p_.dv), DType::kF32,
                         {p_.batch, p_.heads, p_.queries, p_.dv});
    bool first = true;
    for (int64_t g = 0; g < kBranches; ++g) {
      if (!taken(g)) continue;
      if (g == 0) softmax_attention(in_, plain, {branch_}, context_);
      if (g == 1) hyperbolic();
      if (g == 2) spherical();
      add(g, first);
      first = false;
    }
    if (first) add(-1, true);
  }

 private:
  float weight(int64_t b, int64_t h, int64_t i, int64_t g) const {
    if (g < 0) return 0;
    return routing_.data ? *routing_.at<float>({b, h, i, g}) : 1.0f / 3;
  }

  bool taken(int64_t g) const {
    for (int64_t b = 0; b < p_.batch; ++b)
      for (int64_t h = 0; h < p_.heads; ++h)
        for (int64_t i = 0; i < p_.queries; ++i)
          if (weight(b, h, i, g) != 0) return true;
    return false;
  }

  // out += routing * branch, or = for the first.
  void add(int64_t g, bool first) {
    parallel_for(context_.threads, p_.batch * p_.heads, [&](int64_t task, int) {
      const int64_t b = task / p_.heads, h = task % p_.heads;
      for (int64_t i = 0; i < p_.queries; ++i) {
        float* to = out_.at<float>({b, h, i});
        if (first) std::fill_n(to, p_.dv, 0.0f);
        const float w = weight(b, h, i, g);
        if (w == 0) continue;
        const float* from = branch_.at<float>({b, h, i});
        for (int64_t c = 0; c < p_.dv; ++c) to[c] += w * from[c];
      }
    });
  }

  // Attention of lifted queries and keys, whose dot products `score` turns into scores.
  template <class F>
  void lifted(Space space, double c, const F& score) {
    const int64_t width = p_.d + 2, keys = in_.k.shape[2];
    const DenseKernels& kernels = dense_kernels(active_isa(context_));
    Qkv curved = in_;
    curved.q = dense_view(exact::kept_floats(context_, 1, p_.batch * p_.heads * p_.queries * width), DType::kF32,
                          {p_.batch, p_.heads, p_.queries, width});
    curved.k = dense_view(exact::kept_floats(context_, 2, p_.batch * p_.kv_heads * keys * width), DType::kF32,
                          {p_.batch, p_.kv_heads, keys, width});
    parallel_for(context_.threads, p_.batch * p_.heads, [&](int64_t task, int) {
      const int64_t b = task / p_.heads, h = task % p_.heads;
      for (int64_t i = 0; i < p_.queries; ++i)
        lift(in_.q.at<float>({b, h, i}), p_.d, space, c, false, curved.q.at<float>({b, h, i}));
    });
    parallel_for(context_.threads, p_.batch * p_.kv_heads, [&](int64_t task, int) {
      const int64_t b = task / p_.kv_heads, h = task % p_.kv_heads;
      for (int64_t j = 0; j < keys; ++j) {
        float* row = curved.k.at<float>({b, h, j});
        const int64_t from = (b * in_.k.stride[0] + h * in_.k.stride[1] + j * in_.k.stride[2]) * size_of(in_.k.type);
        kernels.widen(in_.k.type, in_.k.as<char>() + from, 0, 1, p_.d, row, 0);
        lift(row, p_.d, space, c, true, row);
      }
    });
    const Hook hook = make_hook(score);
    softmax_attention(curved, {.causal = o_.causal, .scale = 1}, {branch_}, context_, {.score = &hook});
  }

  double beta() const {
    const double scale = o_.scale == 0 ? 1 / std::sqrt(static_cast<double>(p_.d)) : o_.scale;
    return o_.beta == 0 ? std::abs(scale) : o_.beta;
  }

  // With angle = sqrt(c) d, a score is -beta / sqrt(c) * angle, or -beta / (2 c) * angle^2.
  float falls(double c) const { return static_cast<float>(o_.squared ? beta() / (2 * c) : beta() / std::sqrt(c)); }

  void flat() {
    const float b = static_cast<float>(beta());
    if (o_.squared)
      lifted(Space::kHyperboloid, 0, [b](float s, int, int, int32_t, int32_t) { return -b * positive(s); });
    else
      lifted(Space::kHyperboloid, 0,
             [b](float s, int, int, int32_t, int32_t) { return -b * std::sqrt(2 * positive(s)); });
  }

  void hyperbolic() {
    if (o_.hyperbolic == 0) return flat();
    const float c = static_cast<float>(o_.hyperbolic), factor = falls(o_.hyperbolic);
    if (o_.squared) {
      lifted(Space::kHyperboloid, o_.hyperbolic, [=](float s, int, int, int32_t, int32_t) {
        const float angle = hyperbolic_angle(c * positive(s));
        return -factor * (angle * angle);
      });
    } else {
      lifted(Space::kHyperboloid, o_.hyperbolic,
             [=](float s, int, int, int32_t, int32_t) { return -factor * hyperbolic_angle(c * positive(s)); });
    }
  }

  void spherical() {
    if (o_.spherical == 0) return flat();
    const float half = o_.directions ? 0.5f : static_cast<float>(o_.spherical / 2), factor = falls(o_.spherical);
    const Space space = o_.directions ? Space::kDirections : Space::kSphere;
    if (o_.squared) {
      lifted(space, o_.spherical, [=](float s, int, int, int32_t, int32_t) {
        const float angle = spherical_angle(half * positive(s));
        return -factor * (angle * angle);
      });
    } else {
      lifted(space, o_.spherical,
             [=](float s, int, int, int32_t, int32_t) { return -factor * spherical_angle(half * positive(s)); });
    }
  }

  const Qkv& in_;
  const exact::Problem& p_;
  View routing_;
  const CatGeometryOptions& o_;
  const View& out_;
  Context& context_;
  View branch_;
};

}  // namespace

void cat_geometry_attention(const Qkv& in, const View& routing, const CatGeometryOptions& options, const View& out,
                            Context& context) {
  check_options(options);
  exact::require_arrays(kOp, in);
  const exact::Problem p = exact::check(in, {.causal = options.causal, .scale = options.scale}, kOp);
  if (p.d > 510) throw Error(ErrorKind::kArgument, kOp, "D", fmt::format("{}", p.d), "must be at most 510");
  exact::check_outputs(p, in, {out}, kOp);
  const View& r = routing;
  auto axis = [&](int a, int64_t n) { return r.data && r.rank == 4 && r.shape[a] == 1 ? 1 : n; };
  exact::check_parameter(
      kOp, {"routing", r, {axis(0, p.batch), axis(1, p.heads), axis(2, p.queries), kBranches}, "[B, Hq, Tq, 3]"},
      {out});
  context.throw_if_stopped();
  if (p.batch == 0 || p.heads == 0 || p.queries == 0) return;
  Geometries(in, p, routing, options, out, context).run();
}

}  // namespace attend
