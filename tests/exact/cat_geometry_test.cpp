#include "attend/exact/cat_geometry.h"

#include <cmath>
#include <numbers>

#include "attend/tensor/error.h"
#include "exact/score_limits.h"

namespace attend {
namespace {

class CatGeometry : public test::EachIsa {
 protected:
  std::vector<float> run(test::SmallCall& call, const CatGeometryOptions& options, std::vector<float> routing) const {
    Context context = this->context();
    const View weights = dense_view(routing.data(), DType::kF32, {1, 1, 1, 3});
    cat_geometry_attention(call.in(), weights, options, call.outputs().out, context);
    return call.out;
  }
};

// Lengths of keys don't matter where all have one; only then is -beta/2 |q - k|^2 the dot product and a constant.
void normalise_keys(test::SmallCall& call, float length) {
  for (int64_t row = 0; row < call.hkv * call.tk; ++row) {
    float* k = call.k.data() + row * call.d;
    double sum = 0;
    for (int64_t c = 0; c < call.d; ++c) sum += static_cast<double>(k[c]) * static_cast<double>(k[c]);
    for (int64_t c = 0; c < call.d; ++c) k[c] *= length / static_cast<float>(std::sqrt(sum));
  }
}

TEST_P(CatGeometry, TheEuclideanBranchAloneIsSoftmaxAttention) {
  test::SmallCall call(1, 4, 2, 33, 70, 16, 12);
  Context context = this->context();
  softmax_attention(call.in(), {.causal = true}, {call.outputs().out}, context);
  const std::vector<float> plain = call.out;
  EXPECT_EQ(run(call, {.causal = true}, {1, 0, 0}), plain);
  EXPECT_NE(run(call, {.causal = true}, {0, 1, 0}), plain);
}

TEST_P(CatGeometry, RoutingMixesTheBranchesOfEachToken) {
  test::SmallCall call(1, 2, 1, 30, 50, 8, 8);
  const CatGeometryOptions options{.squared = true};
  const std::vector<float> branches[] = {run(call, options, {1, 0, 0}), run(call, options, {0, 1, 0}),
                                         run(call, options, {0, 0, 1})};
  EXPECT_NE(branches[1], branches[2]);
  // Every token takes one branch, then every token a mixture of its own.
  std::vector<float> routing(2 * 30 * 3, 0), want(call.out.size());
  for (size_t row = 0; row < 60; ++row) {
    routing[row * 3 + row % 3] = 1;
    for (size_t c = 0; c < 8; ++c) want[row * 8 + c] = branches[row % 3][row * 8 + c];
  }
  Context context = this->context();
  const View weights = dense_view(routing.data(), DType::kF32, {1, 2, 30, 3});
  cat_geometry_attention(call.in(), weights, options, call.outputs().out, context);
  EXPECT_EQ(call.out, want);
  for (size_t row = 0; row < 60; ++row) {
    const float a = static_cast<float>(row) / 60, b = (1 - a) / 4, c = 1 - a - b;
    for (size_t e = 0; e < 3; ++e) routing[row * 3 + e] = e == 0 ? a : e == 1 ? b : c;
    for (size_t e = 0; e < 8; ++e)
      want[row * 8 + e] = a * branches[0][row * 8 + e] + b * branches[1][row * 8 + e] + c * branches[2][row * 8 + e];
  }
  cat_geometry_attention(call.in(), weights, options, call.outputs().out, context);
  EXPECT_LT(test::largest_difference(call.out, want), 1e-6);
  cat_geometry_attention(call.in(), {}, options, call.outputs().out, context);
  const std::vector<float> equal = call.out;
  EXPECT_EQ(equal, run(call, options, {1.0f / 3, 1.0f / 3, 1.0f / 3}));
}

// With squared distances and keys of one length, both curved branches tend to the Euclidean one as the curvature tends
// to 0: what is left of the difference is proportional to it.
TEST_P(CatGeometry, WithoutCurvatureEveryBranchIsEuclidean) {
  test::SmallCall call(1, 2, 1, 40, 60, 16, 16);
  normalise_keys(call, 2);
  const std::vector<float> flat = run(call, {}, {1, 0, 0});
  for (const bool sphere : {false, true}) {
    auto away = [&](double c) {
      const CatGeometryOptions options{.hyperbolic = c, .spherical = c, .squared = true};
      return test::largest_difference(
          flat, run(call, options, sphere ? std::vector<float>{0, 0, 1} : std::vector<float>{0, 1, 0}));
    };
    EXPECT_GT(away(1), 0.05);
    EXPECT_NEAR(away(1e-4) / away(1e-3), 0.1, 0.02);
    EXPECT_LT(away(1e-7), 1e-4);
    EXPECT_LT(away(0), 1e-4);
  }
}

// The same of distances, whose limit is the Euclidean distance.
TEST_P(CatGeometry, DistancesTendToTheEuclideanOne) {
  test::SmallCall call = test::weights_call(1, 9, 20, 8);
  const double beta = 0.7;
  for (const double c : {0.0, 1e-9}) {
    for (const auto& branch : {std::vector<float>{0, 1, 0}, {0, 0, 1}}) {
      const std::vector<float> got = run(call, {.beta = beta, .hyperbolic = c, .spherical = c}, branch);
      for (int64_t i = 0; i < 9; ++i) {
        double sum = 0;
        std::vector<double> weight;
        for (int64_t j = 0; j < 20; ++j) {
          double square = 0;
          for (int64_t e = 0; e < 8; ++e)
            square +=
                std::pow(double{call.q[static_cast<size_t>(i * 8 + e)]} - call.k[static_cast<size_t>(j * 8 + e)], 2);
          sum += weight.emplace_back(std::exp(-beta * std::sqrt(square)));
        }
        for (int64_t j = 0; j < 20; ++j)
          EXPECT_NEAR(got[static_cast<size_t>(i * 20 + j)], weight[static_cast<size_t>(j)] / sum, 1e-5);
      }
    }
  }
}

// Points on one geodesic through the origin: on the hyperboloid sqrt(c) |x| is the sinh, on the sphere the tangent of
// sqrt(c) times the way, and ways add up.
TEST_P(CatGeometry, WaysAlongAGeodesicAddUp) {
  const double c = 0.6, root = std::sqrt(c), beta = 1.5, from = -0.4, ways[] = {-0.9, 0.1, 0.5, 1.2};
  for (const bool sphere : {false, true}) {
    test::SmallCall call = test::weights_call(1, 1, 4, 3);
    auto place = [&](std::vector<float>& to, size_t row, double way) {
      const double x = (sphere ? std::tan(root * way) : std::sinh(root * way)) / root;
      for (size_t e = 0; e < 3; ++e) to[row * 3 + e] = static_cast<float>(x * std::array{2.0, -1.0, 2.0}[e] / 3);
    };
    place(call.q, 0, from);
    double sum = 0;
    for (size_t j = 0; j < 4; ++j) {
      place(call.k, j, ways[j]);
      sum += std::exp(-beta * std::abs(ways[j] - from));
    }
    const std::vector<float> got = run(call, {.beta = beta, .hyperbolic = c, .spherical = c},
                                       sphere ? std::vector<float>{0, 0, 1} : std::vector<float>{0, 1, 0});
    for (size_t j = 0; j < 4; ++j) EXPECT_NEAR(got[j], std::exp(-beta * std::abs(ways[j] - from)) / sum, 3e-6) << j;
  }
}

TEST_P(CatGeometry, DirectionsAreAnglesWhateverTheLength) {
  test::SmallCall call = test::weights_call(1, 1, 5, 2);
  const float keys[] = {3, 0, 0, 0.01f, -7, 0, 5, 5, 0, 0};
  const double pi = std::numbers::pi, angles[] = {0, pi / 2, pi, pi / 4, pi / 2};
  call.k.assign(std::begin(keys), std::end(keys));
  call.q = {0.5f, 0};
  const std::vector<float> got = run(call, {.beta = 1, .spherical = 4, .directions = true}, {0, 0, 1});
  double sum = 0;
  for (const double angle : angles) sum += std::exp(-angle / 2);
  for (size_t j = 0; j < 5; ++j) EXPECT_NEAR(got[j], std::exp(-angles[j] / 2) / sum, 1e-4) << j;
}

TEST_P(CatGeometry, ABadValueReachesOnlyTokensThatTakeItsBranch) {
  test::SmallCall call(1, 1, 1, 4, 6, 8, 8);
  std::vector<float> routing = {1, 0, 0, 0, 1, 0, 0, 0, 1, 0.5f, NAN, 0};
  Context context = this->context();
  const View weights = dense_view(routing.data(), DType::kF32, {1, 1, 4, 3});
  cat_geometry_attention(call.in(), weights, {}, call.outputs().out, context);
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(std::isnan(call.out[i * 8]), i == 3);
}

struct GeometryGradients {
  std::vector<float> q, k, v, routing;

  GeometryGradients(test::SmallCall& call, const std::vector<float>& weights)
      : q(call.q.size(), NAN), k(call.k.size(), NAN), v(call.v.size(), NAN), routing(weights.size(), NAN) {}
  CatGeometryGrad views(const Qkv& in) {
    return {dense_view(q.data(), DType::kF32, 4, in.q.shape), dense_view(k.data(), DType::kF32, 4, in.k.shape),
            dense_view(v.data(), DType::kF32, 4, in.v.shape), dense_view(routing.data(), DType::kF32, {1, 1, 1, 3})};
  }
};

TEST_P(CatGeometry, TheEuclideanBranchAloneHasSoftmaxsGradients) {
  test::SmallCall call(2, 4, 2, 33, 70, 16, 12);
  Context context = this->context();
  const test::SmallCall losses(2, 4, 2, 33, 70, 12, 12);
  std::vector<float> loss = losses.q, routing = {1, 0, 0};
  const View d_out = dense_view(loss.data(), DType::kF32, {2, 4, 33, 12});
  GeometryGradients want(call, routing), got(call, routing);
  const CatGeometryGrad to = want.views(call.in());
  call.run({.causal = true}, context);
  softmax_attention_backward(call.in(), {.causal = true}, call.outputs(), {.out = d_out}, {to.q, to.k, to.v}, context);
  double product = 0;
  for (size_t i = 0; i < loss.size(); ++i) product += double{loss[i]} * call.out[i];
  cat_geometry_attention_backward(call.in(), dense_view(routing.data(), DType::kF32, {1, 1, 1, 3}), {.causal = true},
                                  d_out, got.views(call.in()), context);
  EXPECT_EQ(got.q, want.q);
  EXPECT_EQ(got.k, want.k);
  EXPECT_EQ(got.v, want.v);
  EXPECT_NEAR(got.routing[0], product, 1e-3);
}

// A distance of 0 has no derivative, nor have antipodes and directions of nothing.
TEST_P(CatGeometry, PointsThatCoincideHaveFiniteGradients) {
  test::SmallCall call(1, 1, 1, 3, 4, 4, 4);
  for (size_t e = 0; e < 4; ++e) {
    call.k[e] = call.q[e] = call.k[4 + e] = static_cast<float>(e) + 1;
    call.q[4 + e] = -call.q[e];
    call.q[8 + e] = call.k[8 + e] = 0;
  }
  std::vector<float> loss(12, 1.0f), routing = {0.2f, 0.5f, 0.3f};
  for (const bool squared : {false, true})
    for (const bool directions : {false, true}) {
      GeometryGradients got(call, routing);
      Context context = this->context();
      cat_geometry_attention_backward(call.in(), dense_view(routing.data(), DType::kF32, {1, 1, 1, 3}),
                                      {.squared = squared, .directions = directions},
                                      dense_view(loss.data(), DType::kF32, {1, 1, 3, 4}), got.views(call.in()),
                                      context);
      for (const auto* x : {&got.q, &got.k, &got.v, &got.routing})
        for (const float e : *x) EXPECT_TRUE(std::isfinite(e));
    }
}

TEST(CatGeometryRefuses, WhatHasNoMeaning) {
  test::SmallCall call(1, 1, 1, 2, 3, 8, 8), wide(1, 1, 1, 2, 3, 511, 8);
  Context context(1);
  std::vector<float> routing(6, 1.0f);
  const View three = dense_view(routing.data(), DType::kF32, {1, 1, 2, 3}),
             two = dense_view(routing.data(), DType::kF32, {1, 1, 3, 2});
  auto attend = [&](test::SmallCall& c, const View& r, const CatGeometryOptions& o) {
    cat_geometry_attention(c.in(), r, o, c.outputs().out, context);
  };
  EXPECT_NO_THROW(attend(call, three, {}));
  EXPECT_THROW(attend(call, two, {}), Error);
  EXPECT_THROW(attend(wide, {}, {}), Error);
  EXPECT_THROW(attend(call, three, {.beta = -1}), Error);
  EXPECT_THROW(attend(call, three, {.hyperbolic = -1}), Error);
  EXPECT_THROW(attend(call, three, {.spherical = NAN}), Error);
  EXPECT_THROW(attend(call, three, {.spherical = 0, .directions = true}), Error);
}

ATTEND_EACH_ISA(CatGeometry);

}  // namespace
}  // namespace attend
