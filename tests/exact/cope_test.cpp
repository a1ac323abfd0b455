#include "attend/exact/cope.h"

#include <cmath>
#include <limits>

#include "attend/exact/relative.h"
#include "exact/call.h"

namespace attend {
namespace {

class ContextualPositions : public testing::TestWithParam<Isa> {};

TEST_P(ContextualPositions, WithEmbeddingsOfZeroItIsPlain) {
  test::SmallCall call(2, 4, 2, 300, 1100, 16, 24);
  std::vector<float> zeros(20 * 16, 0.0f);
  for (int threads : {1, 2}) {
    Context context = test::context_for(GetParam(), threads);
    softmax_attention(call.in(), {.causal = true}, call.outputs(), context);
    const std::vector<float> plain = call.out;
    cope_attention(call.in(), dense_view(zeros.data(), DType::kF32, {20, 16}), {}, call.outputs(), context);
    EXPECT_EQ(plain, call.out);
  }
}

// Where every gate is open, position counts tokens: the key itself stands at 1, and all beyond P - 1 share the last.
TEST_P(ContextualPositions, WithOpenGatesTheyAreRelative) {
  constexpr int64_t kP = 30, kD = 16;
  test::SmallCall call(1, 2, 1, 90, 600, kD, 8);
  for (size_t x = 0; x < call.q.size(); ++x) call.q[x] = x % kD == 0 ? 20.0f : call.q[x] / 8;
  for (size_t x = 0; x < call.k.size(); ++x) call.k[x] = x % kD == 0 ? 20.0f : call.k[x] / 8;
  std::mt19937_64 random(3);
  std::normal_distribution<float> normal(0, 0.2f);
  std::vector<float> embeddings(kP * kD), table;
  for (float& e : embeddings) e = normal(random);
  for (int64_t distance = kP - 2; distance >= 0; --distance)  // rows of distances -(P - 2) .. 0
    table.insert(table.end(), embeddings.begin() + (distance + 1) * kD, embeddings.begin() + (distance + 2) * kD);
  Context context = test::context_for(GetParam());
  cope_attention(call.in(), dense_view(embeddings.data(), DType::kF32, {kP, kD}), {}, call.outputs(), context);
  const std::vector<float> contextual = call.out;
  relative_attention(call.in(), {.keys = dense_view(table.data(), DType::kF32, {1, kP - 1, kD})},
                     {.causal = true, .past = true}, call.outputs(), context);
  for (size_t i = 0; i < contextual.size(); ++i) ASSERT_NEAR(contextual[i], call.out[i], 1e-3);
}

TEST_P(ContextualPositions, LaterKeysChangeNothing) {
  test::SmallCall call(1, 2, 1, 40, 40, 16, 16);
  std::vector<float> embeddings(10 * 16);
  for (size_t i = 0; i < embeddings.size(); ++i) embeddings[i] = std::sin(static_cast<float>(i));
  const View e = dense_view(embeddings.data(), DType::kF32, {10, 16});
  Context context = test::context_for(GetParam());
  cope_attention(call.in(), e, {}, call.outputs(), context);
  const std::vector<float> before = call.out;
  for (std::vector<float>* x : {&call.k, &call.v}) std::fill(x->begin() + 23 * 16, x->end(), NAN);
  cope_attention(call.in(), e, {}, call.outputs(), context);
  for (size_t i = 0; i < before.size(); ++i) {
    if (i / 16 % 40 < 23) {
      ASSERT_EQ(before[i], call.out[i]);
    } else {
      ASSERT_TRUE(std::isnan(call.out[i]));
    }
  }
}

// Cut into chunks, each with the keys up to its end, queries give the bits of the whole.
TEST_P(ContextualPositions, ChunksGiveTheBitsOfTheWhole) {
  constexpr int64_t kLength = 530;
  test::SmallCall call(1, 1, 1, kLength, kLength, 16, 16);
  std::vector<float> embeddings(40 * 16);
  for (size_t i = 0; i < embeddings.size(); ++i) embeddings[i] = std::cos(static_cast<float>(i));
  const View e = dense_view(embeddings.data(), DType::kF32, {40, 16});
  Context context = test::context_for(GetParam(), 2);
  cope_attention(call.in(), e, {}, call.outputs(), context);
  const std::vector<float> whole = call.out;
  for (int64_t first = 0; first < kLength; first += 77) {
    const int64_t rows = std::min<int64_t>(77, kLength - first);
    auto slice = [&](std::vector<float>& x, int64_t begin, int64_t count) {
      return dense_view(x.data() + begin * 16, DType::kF32, {1, 1, count, 16});
    };
    cope_attention(
        {.q = slice(call.q, first, rows), .k = slice(call.k, 0, first + rows), .v = slice(call.v, 0, first + rows)}, e,
        {}, {slice(call.out, first, rows)}, context);
  }
  EXPECT_EQ(whole, call.out);
}

INSTANTIATE_TEST_SUITE_P(Usable, ContextualPositions, testing::ValuesIn(test::usable_isas()),
                         [](const auto& usable) { return std::string(name_of(usable.param)); });

}  // namespace
}  // namespace attend
