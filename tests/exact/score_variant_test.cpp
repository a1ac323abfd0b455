// Limits of the mechanisms that change scores, normalisers and heads of softmax attention.
#include <cmath>

#include "attend/exact/affine.h"
#include "attend/exact/cog.h"
#include "attend/exact/differential.h"
#include "attend/exact/entmax.h"
#include "attend/exact/lssar.h"
#include "attend/exact/mla.h"
#include "attend/exact/probabilistic.h"
#include "attend/exact/relu.h"
#include "attend/exact/reversed.h"
#include "attend/exact/sigmoid.h"
#include "attend/exact/sinkhorn.h"
#include "attend/exact/softmax1.h"
#include "attend/tensor/error.h"
#include "exact/score_limits.h"

namespace attend {
namespace {

class ScoreVariants : public test::EachIsa {};
ATTEND_EACH_ISA(ScoreVariants);

TEST_P(ScoreVariants, DifferentialWithoutNoiseIsSoftmaxAttention) {
  test::SmallCall call(2, 4, 2, 9, 600, 16, 24);
  Context context = this->context();
  call.run({.causal = true}, context);
  const std::vector<float> softmax = call.out;
  const Qkv in = call.in();
  DifferentialIn both{.signal = in, .q_noise = in.q, .k_noise = in.k};
  differential_attention(both, {.causal = true, .lambda = 0}, call.outputs().out, context);
  EXPECT_EQ(call.out, softmax);
  differential_attention(both, {.causal = true, .lambda = 1}, call.outputs().out, context);
  for (float x : call.out) EXPECT_EQ(x, 0);
}

TEST_P(ScoreVariants, GroupedDifferentialRepeatsNoiseHeads) {
  test::SmallCall call(1, 6, 1, 5, 40, 8, 8);
  std::vector<float> noise = test::normals(2 * 5 * 8, 3), repeated, k = test::normals(40 * 8, 4);
  for (int h = 0; h < 6; ++h)
    repeated.insert(repeated.end(), noise.begin() + h / 3 * 40, noise.begin() + (h / 3 + 1) * 40);
  Context context = this->context();
  DifferentialIn in{.signal = call.in(),
                    .q_noise = dense_view(noise.data(), DType::kF32, {1, 2, 5, 8}),
                    .k_noise = dense_view(k.data(), DType::kF32, {1, 1, 40, 8})};
  differential_attention(in, {}, call.outputs().out, context);
  const std::vector<float> grouped = call.out;
  in.q_noise = dense_view(repeated.data(), DType::kF32, {1, 6, 5, 8});
  differential_attention(in, {}, call.outputs().out, context);
  EXPECT_EQ(call.out, grouped);
}

TEST(DifferentialLambda, IsTheDifferenceOfTwoExponentials) {
  const std::vector<float> x = {1, 2}, y = {0.5f, 0.25f}, z = {0, 1}, w = {3, -1};
  EXPECT_NEAR(differential_lambda(x, y, z, w, 0.8), std::exp(1.0) - std::exp(-1.0) + 0.8, 1e-12);
  EXPECT_THROW(differential_lambda(x, y, z, std::span(w).first(1), 0.8), Error);
}

// The absorbed form against attention over keys and values that were expanded for each head.
TEST_P(ScoreVariants, MlaAbsorbedIsMlaExpanded) {
  constexpr int64_t kHeads = 4, kKeys = 700, kPlain = 12, kRope = 4, kRank = 20, kValue = 10, kQueries = 3;
  std::vector<float> q = test::normals(kHeads * kQueries * (kPlain + kRope), 1),
                     cache = test::normals(kKeys * (kRank + kRope), 2),
                     w_uk = test::normals(kHeads * kPlain * kRank, 3, 0.2f),
                     w_uv = test::normals(kHeads * kValue * kRank, 4, 0.2f);
  std::vector<float> k, v, expanded(kHeads * kQueries * kValue), absorbed(expanded.size());
  for (int64_t h = 0; h < kHeads; ++h)
    for (int64_t j = 0; j < kKeys; ++j) {
      auto up = [&](const std::vector<float>& w, int64_t row) {
        double sum = 0;
        for (int64_t r = 0; r < kRank; ++r)
          sum += static_cast<double>(w[static_cast<size_t>(row * kRank + r)]) *
                 cache[static_cast<size_t>(j * (kRank + kRope) + r)];
        return static_cast<float>(sum);
      };
      for (int64_t c = 0; c < kPlain; ++c) k.push_back(up(w_uk, h * kPlain + c));
      for (int64_t c = 0; c < kRope; ++c) k.push_back(cache[static_cast<size_t>(j * (kRank + kRope) + kRank + c)]);
      for (int64_t c = 0; c < kValue; ++c) v.push_back(up(w_uv, h * kValue + c));
    }
  Context context = this->context();
  const View queries = dense_view(q.data(), DType::kF32, {1, kHeads, kQueries, kPlain + kRope});
  softmax_attention({.q = queries,
                     .k = dense_view(k.data(), DType::kF32, {1, kHeads, kKeys, kPlain + kRope}),
                     .v = dense_view(v.data(), DType::kF32, {1, kHeads, kKeys, kValue})},
                    {.causal = true}, {dense_view(expanded.data(), DType::kF32, {1, kHeads, kQueries, kValue})},
                    context);
  mla_attention({.q = queries,
                 .cache = dense_view(cache.data(), DType::kF32, {1, 1, kKeys, kRank + kRope}),
                 .w_uk = dense_view(w_uk.data(), DType::kF32, {kHeads, kPlain, kRank}),
                 .w_uv = dense_view(w_uv.data(), DType::kF32, {kHeads, kValue, kRank})},
                {.causal = true, .rope = kRope},
                {dense_view(absorbed.data(), DType::kF32, {1, kHeads, kQueries, kValue})}, context);
  EXPECT_LE(test::largest_difference(absorbed, expanded), 2e-5);
}

TEST_P(ScoreVariants, CogOfPositiveScoresIsSoftmaxAttention) {
  test::SmallCall call(1, 2, 1, 7, 600, 16, 24);
  for (auto* x : {&call.q, &call.k})
    for (float& e : *x) e = std::abs(e) + 0.01f;
  Context context = this->context();
  call.run({.causal = true, .scale = 0.05}, context);
  const std::vector<float> softmax = call.out;
  cog_attention(call.in(), {.causal = true, .scale = 0.05}, {call.outputs().out}, context);
  EXPECT_LE(test::largest_difference(call.out, softmax), 1e-5);
  for (float& e : call.q) e = -e;
  cog_attention(call.in(), {.causal = true, .scale = 0.05}, {call.outputs().out}, context);
  for (float& e : call.out) e = -e;
  EXPECT_LE(test::largest_difference(call.out, softmax), 1e-5);
}

TEST_P(ScoreVariants, SinkhornRowsAndColumnsSumToOne) {
  test::SmallCall call = test::weights_call(2, 60, 60, 8);
  Context context = this->context();
  sinkhorn_attention(call.in(), {.iterations = 2001}, call.outputs().out, context);
  for (int64_t h = 0; h < 2; ++h)
    for (int64_t line = 0; line < 60; ++line) {
      double row = 0, column = 0;
      for (int64_t at = 0; at < 60; ++at) {
        row += call.out[static_cast<size_t>((h * 60 + line) * 60 + at)];
        column += call.out[static_cast<size_t>((h * 60 + at) * 60 + line)];
      }
      EXPECT_NEAR(row, 1, 1e-4);
      EXPECT_NEAR(column, 1, 1e-2);
    }
}

TEST_P(ScoreVariants, SinkhornWithOneIterationIsSoftmaxAttention) {
  test::SmallCall call(2, 4, 2, 33, 600, 16, 24);
  Context context = this->context();
  call.run({}, context);
  const std::vector<float> softmax = call.out;
  sinkhorn_attention(call.in(), {.iterations = 1}, call.outputs().out, context);
  EXPECT_EQ(call.out, softmax);
}

TEST_P(ScoreVariants, ReversedColumnsSumToWhatIsSent) {
  test::SmallCall call = test::weights_call(2, 50, 30, 8);
  std::vector<float> message(30);
  for (size_t j = 0; j < message.size(); ++j) message[j] = static_cast<float>(j) / 30;
  Context context = this->context();
  reversed_attention(call.in(), {}, dense_view(message.data(), DType::kF32, {1, 30}), {}, call.outputs().out, context);
  for (int64_t h = 0; h < 2; ++h)
    for (int64_t j = 0; j < 30; ++j) {
      double column = 0;
      for (int64_t i = 0; i < 50; ++i) column += call.out[static_cast<size_t>((h * 50 + i) * 30 + j)];
      EXPECT_NEAR(column, message[static_cast<size_t>(j)], 1e-4);
    }
  message[3] = -1;
  EXPECT_THROW(reversed_attention(call.in(), {}, dense_view(message.data(), DType::kF32, {1, 30}), {},
                                  call.outputs().out, context),
               Error);
}

TEST_P(ScoreVariants, SparsemaxProjectsOnTheSimplex) {
  // Scores 1, 0.5 and -1: the threshold is 0.25.
  test::SmallCall call = test::weights_call(1, 1, 3, 1);
  call.q = {1};
  call.k = {1, 0.5f, -1};
  Context context = this->context();
  entmax_attention(call.in(), {.scale = 1, .alpha = 2}, call.outputs().out, context);
  EXPECT_NEAR(call.out[0], 0.75, 1e-7);
  EXPECT_NEAR(call.out[1], 0.25, 1e-7);
  EXPECT_EQ(call.out[2], 0);
}

TEST_P(ScoreVariants, EntmaxIsSparseAndSumsToOne) {
  test::SmallCall call = test::weights_call(2, 40, 300, 16);
  Context context = this->context();
  int64_t support = 301 * 80;
  for (double alpha : {1.2, 1.5, 1.75, 2.0}) {
    entmax_attention(call.in(), {.alpha = alpha}, call.outputs().out, context);
    int64_t nonzero = 0;
    for (int64_t row = 0; row < 80; ++row) {
      double sum = 0;
      for (int64_t j = 0; j < 300; ++j) {
        const float w = call.out[static_cast<size_t>(row * 300 + j)];
        EXPECT_GE(w, 0);
        sum += w;
        nonzero += w != 0;
      }
      EXPECT_NEAR(sum, 1, 1e-5);
    }
    EXPECT_LT(nonzero, support) << "a larger alpha is no sparser";
    support = nonzero;
  }
}

TEST_P(ScoreVariants, EntmaxTowardsOneIsSoftmax) {
  test::SmallCall call = test::weights_call(1, 10, 20, 16);
  for (float& e : call.q) e *= 0.2f;
  Context context = this->context();
  call.run({}, context);
  const std::vector<float> softmax = call.out;
  entmax_attention(call.in(), {.alpha = 1.05}, call.outputs().out, context);
  const double near = test::largest_difference(call.out, softmax);
  entmax_attention(call.in(), {.alpha = 1.1}, call.outputs().out, context);
  const double far = test::largest_difference(call.out, softmax);
  EXPECT_LT(near, 0.03);
  EXPECT_GT(far, 1.5 * near);
}

TEST_P(ScoreVariants, LssarSharpensAndIgnoresNorms) {
  test::SmallCall call = test::weights_call(1, 12, 200, 16);
  Context context = this->context();
  auto peak = [&](int64_t power) {
    lssar_attention(call.in(), {.causal = true, .power = power}, call.outputs().out, context);
    double most = 0;
    for (int64_t row = 0; row < 12; ++row) {
      double sum = 0;
      for (int64_t j = 0; j < 200; ++j) sum += call.out[static_cast<size_t>(row * 200 + j)];
      EXPECT_NEAR(sum, 1, 1e-5);
      most = std::max(most, static_cast<double>(call.out[static_cast<size_t>(row * 200)]));
      for (int64_t j = 0; j < 200; ++j)
        most = std::max(most, static_cast<double>(call.out[static_cast<size_t>(row * 200 + j)]));
    }
    return most;
  };
  const double flat = peak(0), sharp = peak(15);
  EXPECT_GT(sharp, 2 * flat);
  const std::vector<float> before = call.out;
  for (float& e : call.q) e *= 4;
  for (float& e : call.k) e *= 0.25f;
  peak(15);
  EXPECT_LE(test::largest_difference(call.out, before), 1e-5);
}

TEST_P(ScoreVariants, AffineAtItsAverageIsSoftmaxAttentionAndAtZeroTheMean) {
  test::SmallCall call(1, 2, 1, 8, 90, 16, 8);
  Context context = this->context();
  call.run({.causal = true}, context);
  const std::vector<float> softmax = call.out;
  std::vector<float> alpha(16, 1.0f);
  const View gate = dense_view(alpha.data(), DType::kF32, {1, 2, 8});
  affine_attention(call.in(), gate, {.causal = true, .average = 1}, call.outputs().out, context);
  EXPECT_EQ(call.out, softmax);
  alpha.assign(16, 0.0f);
  affine_attention(call.in(), gate, {.causal = true, .average = 0.5}, call.outputs().out, context);
  for (int64_t i = 0; i < 8; ++i)
    for (int64_t c = 0; c < 8; ++c) {
      double mean = 0;
      for (int64_t j = 0; j < 83 + i; ++j) mean += call.v[static_cast<size_t>(j * 8 + c)];
      EXPECT_NEAR(call.out[static_cast<size_t>(i * 8 + c)], 0.5 * mean / static_cast<double>(83 + i), 1e-6);
    }
}

TEST_P(ScoreVariants, Softmax1IsASinkOfZeroAndMayAttendToNothing) {
  test::SmallCall call(1, 2, 1, 5, 40, 16, 8);
  Context context = this->context();
  std::vector<float> zeros(2, 0.0f);
  Qkv in = call.in();
  in.sink_logits = dense_view(zeros.data(), DType::kF32, {2});
  softmax_attention(in, {.causal = true}, call.outputs(), context);
  const std::vector<float> sink = call.out;
  softmax1_attention(call.in(), {.causal = true}, call.outputs(), context);
  EXPECT_EQ(call.out, sink);
  for (float& e : call.q) e = -3;
  for (float& e : call.k) e = 3;
  softmax1_attention(call.in(), {.causal = true}, call.outputs(), context);
  for (float x : call.out) EXPECT_NEAR(x, 0, 1e-10);
}

TEST_P(ScoreVariants, ProbabilisticOfCertainTokensIsSoftmaxAttentionAndHidesTheImpossible) {
  test::SmallCall call(1, 2, 1, 40, 40, 16, 8);
  Context context = this->context();
  call.run({}, context);
  const std::vector<float> softmax = call.out;
  std::vector<float> exist(40, 1.0f);
  const View probabilities = dense_view(exist.data(), DType::kF32, {1, 40});
  probabilistic_attention(call.in(), probabilities, {}, call.outputs().out, context);
  EXPECT_EQ(call.out, softmax);

  // Tokens 25 to 39 don't exist: attention among the others, and nothing for these.
  std::fill(exist.begin() + 25, exist.end(), 0.0f);
  Qkv shorter = call.in();
  for (View* view : {&shorter.q, &shorter.k, &shorter.v}) view->shape[2] = 25;
  AttnOut part = call.outputs();
  part.lse = {};
  std::fill(call.out.begin(), call.out.end(), 0.0f);
  part.out.shape[2] = 25;
  softmax_attention(shorter, {}, part, context);
  const std::vector<float> want = call.out;
  probabilistic_attention(call.in(), probabilities, {}, call.outputs().out, context);
  EXPECT_LE(test::largest_difference(call.out, want), 1e-6);
  exist[0] = 1.5f;
  EXPECT_THROW(probabilistic_attention(call.in(), probabilities, {}, call.outputs().out, context), Error);
}

TEST_P(ScoreVariants, SigmoidAndReluOfEqualScoresAreMeans) {
  test::SmallCall call = test::weights_call(1, 4, 30, 8);
  for (float& e : call.q) e = 1;
  for (float& e : call.k) e = 0.25f;
  Context context = this->context();
  relu_attention(call.in(), {.causal = true, .scale = 1}, call.outputs().out, context);
  for (int64_t i = 0; i < 4; ++i)
    for (int64_t j = 0; j < 30; ++j)
      EXPECT_NEAR(call.out[static_cast<size_t>(i * 30 + j)], j <= 26 + i ? 2.0 / static_cast<double>(27 + i) : 0, 1e-6);
  sigmoid_attention(call.in(), {.causal = true, .scale = 1}, call.outputs().out, context);
  for (int64_t i = 0; i < 4; ++i) {
    const double n = static_cast<double>(27 + i), want = 1 / (1 + n * std::exp(-2.0));
    for (int64_t j = 0; j < 30; ++j)
      EXPECT_NEAR(call.out[static_cast<size_t>(i * 30 + j)], j <= 26 + i ? want : 0, 1e-6);
  }
}

}  // namespace
}  // namespace attend
