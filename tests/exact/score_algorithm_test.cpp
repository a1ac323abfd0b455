// Limits of the mechanisms that are algorithms of their own.
#include <cmath>
#include <numeric>

#include "attend/exact/dcmha.h"
#include "attend/exact/gaam.h"
#include "attend/exact/hsa.h"
#include "attend/exact/lla.h"
#include "attend/exact/tensor.h"
#include "attend/reference/hsa.h"
#include "attend/tensor/bound.h"
#include "exact/score_limits.h"
#include "support/expect_error.h"

namespace attend {
namespace {

class ScoreAlgorithms : public test::EachIsa {};
ATTEND_EACH_ISA(ScoreAlgorithms);

TEST_P(ScoreAlgorithms, HsaOverAFlatTreeIsSoftmaxAttention) {
  test::SmallCall call(2, 4, 2, 100, 100, 16, 24);
  Context context = this->context();
  call.run({}, context);
  const std::vector<float> softmax = call.out;
  hsa_attention(call.in(), {.branch = 100}, call.outputs().out, context);
  EXPECT_LE(test::largest_difference(call.out, softmax), 2e-5);
  hsa_attention(call.in(), {.branch = 10}, call.outputs().out, context);
  EXPECT_GT(test::largest_difference(call.out, softmax), 0.1) << "a tree changes nothing";
}

TEST_P(ScoreAlgorithms, HsaOverAnyTreeIsItsDefinition) {
  // Seven tokens: {0, 1, 2}, {3}, {{4, 5}, 6}; node 8 has one child.
  const std::vector<int32_t> parents = {7, 7, 7, 8, 9, 9, 10, 11, 11, 10, 11, -1};
  test::SmallCall call(1, 2, 1, 7, 7, 8, 8);
  Context context = this->context();
  hsa_attention(call.in(), parents, 0, call.outputs().out, context);
  std::vector<int32_t> copy = parents;
  const std::vector<double> want =
      test::reference_out(*make_hsa_reference({}), call, {{"parents", dense_view(copy.data(), DType::kI32, {12})}});
  for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(call.out[i], want[i], 1e-5);
}

TEST_P(ScoreAlgorithms, HsaRefusesWhatIsNoTree) {
  test::SmallCall call(1, 1, 1, 3, 3, 8, 8);
  Context context = this->context();
  for (const std::vector<int32_t>& parents :
       {std::vector<int32_t>{3, 3, 3, 3}, {3, 3, 2, -1}, {3, 3, 4, -1}, {3, 3}, {4, 4, 4, 4, -1}, {3, 3, 3, 0, -1}})
    EXPECT_THROW(hsa_attention(call.in(), parents, 0, call.outputs().out, context), Error);
}

TEST_P(ScoreAlgorithms, LlaWithAStiffSlopeIsSoftmaxAttention) {
  test::SmallCall call(1, 2, 1, 40, 90, 16, 16);
  Context context = this->context();
  call.run({.causal = true}, context);
  const std::vector<float> softmax = call.out;
  lla_attention(call.in(), {.causal = true, .ridge = 1e9}, call.outputs().out, context);
  EXPECT_LE(test::largest_difference(call.out, softmax), 2e-5);
}

TEST_P(ScoreAlgorithms, LlaWithFlatWeightsIsLinearRegression) {
  // Values are an affine function of keys: regression finds it, and the output is its value at the query.
  test::SmallCall call(1, 1, 1, 20, 200, 4, 3);
  const std::vector<float> slope = test::normals(12, 5), offset = test::normals(3, 6);
  auto affine = [&](const float* x, int64_t c) {
    double y = offset[static_cast<size_t>(c)];
    for (int64_t e = 0; e < 4; ++e) y += static_cast<double>(slope[static_cast<size_t>(c * 4 + e)]) * x[e];
    return static_cast<float>(y);
  };
  for (int64_t j = 0; j < 200; ++j)
    for (int64_t c = 0; c < 3; ++c) call.v[static_cast<size_t>(j * 3 + c)] = affine(call.k.data() + j * 4, c);
  Context context = this->context();
  lla_attention(call.in(), {.scale = 1e-6, .ridge = 1e-6}, call.outputs().out, context);
  for (int64_t i = 0; i < 20; ++i)
    for (int64_t c = 0; c < 3; ++c)
      EXPECT_NEAR(call.out[static_cast<size_t>(i * 3 + c)], affine(call.q.data() + i * 4, c), 2e-3);
}

TEST_P(ScoreAlgorithms, TensorAttentionToOnesIsSoftmaxAttention) {
  test::SmallCall call(1, 2, 1, 6, 50, 16, 8);
  Context context = this->context();
  call.run({.causal = true}, context);
  const std::vector<float> softmax = call.out;
  std::vector<float> ones(50 * 16, 1.0f);
  const Qkv in = call.in();
  tensor_attention({.q = in.q,
                    .k = in.k,
                    .k2 = dense_view(ones.data(), DType::kF32, {1, 1, 50, 16}),
                    .v = in.v,
                    .v2 = dense_view(ones.data(), DType::kF32, {1, 1, 50, 8})},
                   {.causal = true}, call.outputs().out, context);
  EXPECT_LE(test::largest_difference(call.out, softmax), 2e-5);
}

TEST_P(ScoreAlgorithms, TensorPolynomialsApproachTheExactResult) {
  test::SmallCall call(1, 2, 2, 30, 30, 3, 8);
  for (auto* x : {&call.q, &call.k})
    for (float& e : *x) e = 0.8f * std::tanh(e);  // bounded entries: |s| <= sqrt(3) * 0.8^3 < 0.9
  std::vector<float> k2 = test::normals(2 * 30 * 3, 7), v2 = test::normals(2 * 30 * 8, 8);
  for (float& e : k2) e = 0.8f * std::tanh(e);
  const Qkv in = call.in();
  const TensorIn tensors{.q = in.q,
                         .k = in.k,
                         .k2 = dense_view(k2.data(), DType::kF32, {1, 2, 30, 3}),
                         .v = in.v,
                         .v2 = dense_view(v2.data(), DType::kF32, {1, 2, 30, 8})};
  Context context = this->context();
  tensor_attention(tensors, {.causal = true}, call.outputs().out, context);
  const std::vector<float> exact = call.out;
  double most = 0;
  for (float x : call.v)
    for (float y : v2) most = std::max(most, static_cast<double>(std::abs(x * y)));
  double factorial = 1, before = 1e9;
  for (int order = 1; order <= 4; ++order) {
    factorial *= (2 * order) * (2 * order + 1);
    tensor_attention(tensors, {.causal = true, .order = order}, call.outputs().out, context);
    const double away = test::largest_difference(call.out, exact), s = 0.9;
    EXPECT_LE(away, most * 4 * std::exp(2 * s) * std::pow(s, 2 * order + 1) / factorial + 1e-5 * most) << order;
    EXPECT_LT(away, before);
    before = std::max(away, 1e-5);
  }
}

TEST_P(ScoreAlgorithms, GaamWithWideGaussiansIsUniform) {
  std::vector<float> x = test::normals(2 * 5 * 16, 1), out(x.size()), offset = {0.1f, -0.2f}, width = {1e4f, 1e4f};
  Context context = this->context();
  const View from = dense_view(x.data(), DType::kF32, {1, 2, 5, 16}),
             to = dense_view(out.data(), DType::kF32, {1, 2, 5, 16});
  const View offsets = dense_view(offset.data(), DType::kF32, {2, 1}),
             widths = dense_view(width.data(), DType::kF32, {2, 1});
  gaam_attention(from, offsets, widths, {.epsilon = 1e-30}, to, context);
  for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(out[i], x[i] / 16, 1e-6);
  gaam_attention(from, offsets, widths, {.tokens = true, .epsilon = 1e-30}, to, context);
  for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(out[i], x[i] / 5, 1e-6);
  width[1] = 0;
  EXPECT_THROW(gaam_attention(from, offsets, widths, {}, to, context), Error);
}

TEST_P(ScoreAlgorithms, DcmhaWithoutFactorsIsSoftmaxAttentionAndItsMapMixesHeads) {
  constexpr int64_t kHeads = 3, kQueries = 9, kKeys = 70;
  test::SmallCall call(1, kHeads, 1, kQueries, kKeys, 16, 8);
  Context context = this->context();
  call.run({.causal = true}, context);
  const std::vector<float> softmax = call.out;
  std::vector<float> zeros(static_cast<size_t>(kKeys * kHeads * 2), 0.0f);
  const Compose none{.q1 = dense_view(zeros.data(), DType::kF32, {1, kQueries, 2, kHeads}),
                     .q2 = dense_view(zeros.data(), DType::kF32, {1, kQueries, 2, kHeads}),
                     .qd = dense_view(zeros.data(), DType::kF32, {1, kQueries, kHeads}),
                     .k1 = dense_view(zeros.data(), DType::kF32, {1, kKeys, 2, kHeads}),
                     .k2 = dense_view(zeros.data(), DType::kF32, {1, kKeys, 2, kHeads}),
                     .kd = dense_view(zeros.data(), DType::kF32, {1, kKeys, kHeads})};
  dcmha_attention({call.in(), none, none}, {.causal = true}, call.outputs().out, context);
  EXPECT_LE(test::largest_difference(call.out, softmax), 2e-5);

  // Heads share values here: mixing weights mixes outputs.
  std::vector<float> map = test::normals(kHeads * kHeads, 3);
  Compose mixed = none;
  mixed.w = dense_view(map.data(), DType::kF32, {kHeads, kHeads});
  dcmha_attention({call.in(), none, mixed}, {.causal = true}, call.outputs().out, context);
  const int64_t size = kQueries * 8;
  for (int64_t h = 0; h < kHeads; ++h)
    for (int64_t e = 0; e < size; ++e) {
      double want = 0;
      for (int64_t g = 0; g < kHeads; ++g)
        want +=
            static_cast<double>(map[static_cast<size_t>(g * kHeads + h)]) * softmax[static_cast<size_t>(g * size + e)];
      EXPECT_NEAR(call.out[static_cast<size_t>(h * size + e)], want, 1e-4);
    }
}

TEST_P(ScoreAlgorithms, DcmhaTakesNothingFromKeysThatNoQuerySees) {
  constexpr int64_t kHeads = 4, kQueries = 9, kKeys = 70, kBegin = 50, kEnd = 61;  // queries at 52 .. 60 see these
  test::SmallCall call(1, kHeads, 2, kQueries, kKeys, 16, 8);
  std::vector<int32_t> documents(kKeys, 1), positions(kQueries);
  std::fill_n(documents.begin(), kBegin, 0);
  std::iota(positions.begin(), positions.end(), 52);
  Qkv in = call.in();
  in.documents = dense_view(documents.data(), DType::kI32, {1, kKeys});
  in.q_positions = dense_view(positions.data(), DType::kI32, {1, kQueries});
  std::vector<float> of_queries = test::normals(kQueries * 3 * kHeads, 1),
                     of_keys = test::normals(kKeys * 3 * kHeads, 2), map = test::normals(kHeads * kHeads, 3),
                     d_out = test::normals(kHeads * kQueries * 8, 4);
  // Factors in and out with two ranks and gates, side by side.
  auto part = [](std::vector<float>& x, int64_t tokens, int64_t first, int64_t ranks) {
    View view = dense_view(x.data() + first * kHeads, DType::kF32, {1, tokens, ranks, kHeads});
    view.stride[1] = 3 * kHeads;
    if (ranks == 1) view.rank = 3, view.shape[2] = kHeads, view.stride[2] = 1;
    return view;
  };
  auto side = [&](int64_t first) {
    return Compose{.q1 = part(of_queries, kQueries, first, 2),
                   .q2 = part(of_queries, kQueries, 1 - first, 2),
                   .qd = part(of_queries, kQueries, 2, 1),
                   .k1 = part(of_keys, kKeys, first, 2),
                   .k2 = part(of_keys, kKeys, 1 - first, 2),
                   .kd = part(of_keys, kKeys, 2, 1),
                   .w = dense_view(map.data(), DType::kF32, {kHeads, kHeads})};
  };
  const DcmhaIn all{in, side(0), side(1)};
  Context context = this->context();
  // Out and all gradients.
  auto run = [&] {
    std::vector<float> results(8000, 0.0f);
    float* next = results.data();
    auto like = [&](const View& x) {
      const View to = dense_view(next, DType::kF32, x.rank, x.shape);
      next += x.count();
      return to;
    };
    auto like_side = [&](const Compose& c) {
      return Compose{like(c.q1), like(c.q2), like(c.qd), like(c.k1), like(c.k2), like(c.kd), like(c.w)};
    };
    const View out = like(call.outputs().out);
    dcmha_attention(all, {.causal = true}, out, context);
    dcmha_attention_backward(all, {.causal = true}, dense_view(d_out.data(), DType::kF32, 4, out.shape),
                             {like(in.q), like(in.k), like(in.v), like_side(all.pre), like_side(all.post)}, context);
    return results;
  };
  const std::vector<float> want = run();
  for (const float impossible : {NAN, INFINITY, -INFINITY}) {
    for (int64_t j = 0; j < kKeys; ++j) {
      if (j >= kBegin && j < kEnd) continue;
      for (int64_t h = 0; h < 2; ++h) {
        std::fill_n(call.k.begin() + (h * kKeys + j) * 16, 16, impossible);
        std::fill_n(call.v.begin() + (h * kKeys + j) * 8, 8, impossible);
      }
      std::fill_n(of_keys.begin() + j * 3 * kHeads, 3 * kHeads, impossible);
    }
    EXPECT_EQ(run(), want) << impossible;
  }
}

}  // namespace
}  // namespace attend
