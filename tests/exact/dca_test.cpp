// Mechanisms on rotary positions: dual chunk attention and collinear constrained attention.
#include "attend/exact/dca.h"

#include <cmath>

#include "attend/exact/coca.h"
#include "attend/tensor/error.h"
#include "exact/call.h"

namespace attend {
namespace {

class DualChunk : public testing::TestWithParam<Isa> {};

TEST_P(DualChunk, WithinAChunkItIsRotaryAttention) {
  test::SmallCall call(2, 4, 2, 90, 700, 32, 16);
  Context context = test::context_for(GetParam(), 2);
  rope_attention(call.in(), {}, {}, {.causal = true}, call.outputs(), context);
  const std::vector<float> rotary = call.out, lse = call.lse;
  dca_attention(call.in(), {.context = 1024, .chunk = 700}, call.outputs(), context);
  EXPECT_EQ(rotary, call.out);
  EXPECT_EQ(lse, call.lse);
}

TEST_P(DualChunk, WithinAChunkGradientsAreThoseOfRotaryAttention) {
  test::SmallCall call(2, 4, 2, 90, 700, 32, 16);
  Context context = test::context_for(GetParam(), 2);
  const Qkv in = call.in();
  rope_attention(in, {}, {}, {.causal = true}, call.outputs(), context);
  const AttnOutGrad loss{call.outputs().out, call.outputs().lse};  // as good as any
  struct Gradients {
    std::vector<float> q, k, v;
  } rotary{std::vector<float>(call.q.size()), std::vector<float>(call.k.size()), std::vector<float>(call.v.size())},
      chunked = rotary;
  auto views = [&](Gradients& g) {
    return AttnGrad{.q = dense_view(g.q.data(), DType::kF32, 4, in.q.shape),
                    .k = dense_view(g.k.data(), DType::kF32, 4, in.k.shape),
                    .v = dense_view(g.v.data(), DType::kF32, 4, in.v.shape)};
  };
  rope_attention_backward(in, {}, {}, {.causal = true}, call.outputs(), loss, views(rotary), context);
  dca_attention_backward(in, {.context = 1024, .chunk = 700}, call.outputs(), loss, views(chunked), context);
  EXPECT_EQ(rotary.q, chunked.q);
  EXPECT_EQ(rotary.k, chunked.k);
  EXPECT_EQ(rotary.v, chunked.v);
}

// The first c - s tokens of the next chunk see all distances as they are, those after them don't.
TEST_P(DualChunk, TheWindowAcrossChunksIsExact) {
  constexpr int64_t kLength = 96;
  test::SmallCall call(1, 2, 1, kLength, kLength, 32, 16);
  Context context = test::context_for(GetParam());
  rope_attention(call.in(), {}, {}, {.causal = true}, call.outputs(), context);
  const std::vector<float> rotary = call.out;
  auto largest = [&](int64_t first, int64_t last) {
    float most = 0;
    for (int64_t h = 0; h < 2; ++h)
      for (int64_t x = (h * kLength + first) * 16; x < (h * kLength + last) * 16; ++x)
        most = std::max(most, std::abs(rotary[static_cast<size_t>(x)] - call.out[static_cast<size_t>(x)]));
    return most;
  };
  dca_attention(call.in(), {.context = 80, .chunk = 64}, call.outputs(), context);
  EXPECT_LT(largest(0, 80), 1e-5f);
  EXPECT_GT(largest(82, kLength), 1e-3f);
}

TEST_P(DualChunk, LaterKeysChangeNothingAndChunksOfQueriesGiveTheSameBits) {
  constexpr int64_t kLength = 200;
  test::SmallCall call(1, 1, 1, kLength, kLength, 16, 16);
  const DcaOptions options{.context = 40, .chunk = 30};
  Context context = test::context_for(GetParam(), 2);
  dca_attention(call.in(), options, call.outputs(), context);
  const std::vector<float> whole = call.out;
  auto slice = [&](std::vector<float>& x, int64_t begin, int64_t count) {
    return dense_view(x.data() + begin * 16, DType::kF32, {1, 1, count, 16});
  };
  for (int64_t first = 0; first < kLength; first += 17) {
    const int64_t rows = std::min<int64_t>(17, kLength - first);
    dca_attention(
        {.q = slice(call.q, first, rows), .k = slice(call.k, 0, first + rows), .v = slice(call.v, 0, first + rows)},
        options, {slice(call.out, first, rows)}, context);
  }
  EXPECT_EQ(whole, call.out);
  for (std::vector<float>* x : {&call.k, &call.v}) std::fill(x->begin() + 123 * 16, x->end(), NAN);
  dca_attention(call.in(), options, call.outputs(), context);
  for (size_t i = 0; i < whole.size(); ++i) {
    if (i / 16 < 123) {
      ASSERT_EQ(whole[i], call.out[i]);
    } else {
      ASSERT_TRUE(std::isnan(call.out[i]));
    }
  }
}

TEST_P(DualChunk, RefusesAChunkOfTheWholeContext) {
  test::SmallCall call(1, 1, 1, 4, 4, 16, 16);
  Context context = test::context_for(GetParam());
  EXPECT_THROW(dca_attention(call.in(), {.context = 64, .chunk = 64}, call.outputs(), context), Error);
  for (float x : call.out) EXPECT_TRUE(std::isnan(x)) << "written before it was refused";
}

// The score of one pair, from lse: no distance gives more than none, and near ones fall.
TEST_P(DualChunk, CollinearScoresAreHighestAtNoDistance) {
  Context context = test::context_for(GetParam());
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    test::SmallCall call(1, 1, 1, 1, 1, 64, 8, seed);
    auto score = [&](int32_t position) {
      Qkv in = call.in();
      in.q_positions = dense_view(&position, DType::kI32, {1, 1});
      coca_attention(in, {}, call.outputs(), context);
      return call.lse[0];
    };
    double expected = 0;
    for (size_t p = 0; p < 32; ++p) {
      const double length = std::pow(call.q[p], 2) + std::pow(call.q[p + 32], 2);
      expected += length * std::max(0.0, (static_cast<double>(call.k[p]) + call.k[p + 32]) / 2) / 8;
    }
    const float here = score(0);
    EXPECT_NEAR(here, expected, 1e-4 * (1 + expected)) << "seed " << seed;
    EXPECT_LT(score(1), here) << "seed " << seed;
    for (int32_t distance = 2; distance < 4000; distance = distance * 3 / 2 + 1)
      EXPECT_LT(score(distance), here) << "seed " << seed << " distance " << distance;
  }
}

INSTANTIATE_TEST_SUITE_P(Usable, DualChunk, testing::ValuesIn(test::usable_isas()),
                         [](const auto& usable) { return std::string(name_of(usable.param)); });

}  // namespace
}  // namespace attend
