#include "attend/exact/relative.h"

#include <sys/resource.h>

#include <cmath>

#include "attend/exact/rcmha.h"
#include "exact/call.h"

namespace attend {
namespace {

class RelativeAttention : public testing::TestWithParam<Isa> {};

std::vector<float> random_table(int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, 1);
  std::vector<float> table(static_cast<size_t>(count));
  for (float& x : table) x = normal(random);
  return table;
}

TEST_P(RelativeAttention, WithATableOfZerosIsPlain) {
  test::SmallCall call(1, 4, 2, 70, 600, 16, 24);
  Context context = test::context_for(GetParam(), 2);
  for (const bool causal : {false, true}) {
    softmax_attention(call.in(), {.causal = causal}, call.outputs(), context);
    const std::vector<float> plain = call.out, lse = call.lse;
    std::vector<float> zeros(31 * 16, 0.0f);
    relative_attention(call.in(), {.keys = dense_view(zeros.data(), DType::kF32, {1, 31, 16})}, {.causal = causal},
                       call.outputs(), context);
    EXPECT_EQ(plain, call.out);
    EXPECT_EQ(lse, call.lse);
  }
}

// Music Transformer's own procedure, in double: products with all distances, a column of padding, reshaped, cut.
TEST_P(RelativeAttention, EqualsTheSkewingOfThePaper) {
  constexpr int64_t kLength = 61, kD = 16;
  test::SmallCall call(1, 2, 2, kLength, kLength, kD, kD);
  std::vector<float> table = random_table(2 * kLength * kD, 5);
  Context context = test::context_for(GetParam());
  relative_attention(call.in(), {.keys = dense_view(table.data(), DType::kF32, {2, kLength, kD})},
                     {.causal = true, .past = true}, call.outputs(), context);
  for (int64_t h = 0; h < 2; ++h) {
    auto row = [&](const std::vector<float>& x, int64_t i) { return x.data() + (h * kLength + i) * kD; };
    auto dot = [](const float* a, const float* b) {
      double sum = 0;
      for (int64_t c = 0; c < kD; ++c) sum += static_cast<double>(a[c]) * b[c];
      return sum;
    };
    std::vector<double> padded;  // [L, 1 + L]: a zero, then q[i] . e[-L + 1 .. 0]
    for (int64_t i = 0; i < kLength; ++i) {
      padded.push_back(0);
      for (int64_t r = 0; r < kLength; ++r) padded.push_back(dot(row(call.q, i), row(table, r)));
    }
    for (int64_t i = 0; i < kLength; ++i) {
      double total = 0;
      std::vector<double> sum(kD, 0);
      for (int64_t j = 0; j <= i; ++j) {
        // Reshaped to [L + 1, L] and cut to its last L rows.
        const double skewed = padded[static_cast<size_t>((i + 1) * kLength + j)];
        const double weight = std::exp((dot(row(call.q, i), row(call.k, j)) + skewed) / 4);
        total += weight;
        for (size_t c = 0; c < kD; ++c) sum[c] += weight * row(call.v, j)[c];
      }
      for (size_t c = 0; c < kD; ++c)
        ASSERT_NEAR(row(call.out, i)[c], sum[c] / total, 1e-4) << "head " << h << " query " << i;
    }
  }
}

// Every weight goes to one row of the value table: rows of ones count them.
TEST_P(RelativeAttention, ValuesOfAllDistancesAreCountedOnce) {
  for (const int64_t clip : {0, 1, 7, 40}) {
    test::SmallCall call(1, 2, 1, 33, 50, 8, 4);
    std::fill(call.v.begin(), call.v.end(), 0.0f);
    const int64_t rows = 2 * clip + 1;
    std::vector<float> keys = random_table(rows * 8, 3), ones(static_cast<size_t>(rows * 4), 1.0f);
    Context context = test::context_for(GetParam());
    for (const bool causal : {false, true}) {
      relative_attention(call.in(),
                         {.keys = dense_view(keys.data(), DType::kF32, {1, rows, 8}),
                          .values = dense_view(ones.data(), DType::kF32, {1, rows, 4})},
                         {.causal = causal}, call.outputs(), context);
      for (float x : call.out) ASSERT_NEAR(x, 1, 1e-4) << "clip " << clip;
    }
  }
}

// 16384 x 16384 products would take 1 GiB.
TEST_P(RelativeAttention, NeedsNoMatrixOfAllPairs) {
  constexpr int64_t kLength = 16384, kD = 8;
  test::SmallCall call(1, 1, 1, kLength, kLength, kD, kD);
  std::vector<float> table = random_table(kLength * kD, 5);
  Context context = test::context_for(GetParam(), 2);
  rusage before{}, after{};
  getrusage(RUSAGE_SELF, &before);
  relative_attention(call.in(), {.keys = dense_view(table.data(), DType::kF32, {1, kLength, kD})},
                     {.causal = true, .past = true}, call.outputs(), context);
  getrusage(RUSAGE_SELF, &after);
  EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 256 << 10) << "KiB";  // sanitizers keep what was freed
  EXPECT_TRUE(std::isfinite(call.out.back()));
}

TEST_P(RelativeAttention, ConvolutionsOfOneTapChangeNothingAndOthersShift) {
  test::SmallCall call(1, 2, 1, 30, 30, 8, 8);
  Context context = test::context_for(GetParam());
  std::vector<float> zeros(8, 0.0f), kernel = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1},
                                     back(kernel.rbegin(), kernel.rend());
  const View taps = dense_view(kernel.data(), DType::kF32, {2, 8}),
             shift = dense_view(back.data(), DType::kF32, {2, 8});
  const RelativeTables tables{.keys = dense_view(zeros.data(), DType::kF32, {1, 1, 8})};
  softmax_attention(call.in(), {.causal = true}, call.outputs(), context);
  const std::vector<float> plain = call.out;
  rcmha_attention(call.in(), {taps, taps, taps}, tables, {.causal = true}, call.outputs(), context);
  EXPECT_EQ(plain, call.out);
  // Values of the token before: the same as values moved by hand.
  rcmha_attention(call.in(), {taps, taps, shift}, tables, {.causal = true}, call.outputs(), context);
  const std::vector<float> shifted = call.out;
  std::copy_backward(call.v.begin(), call.v.end() - 8, call.v.end());
  std::fill_n(call.v.begin(), 8, 0.0f);
  softmax_attention(call.in(), {.causal = true}, call.outputs(), context);
  EXPECT_EQ(shifted, call.out);
}

INSTANTIATE_TEST_SUITE_P(Usable, RelativeAttention, testing::ValuesIn(test::usable_isas()),
                         [](const auto& usable) { return std::string(name_of(usable.param)); });

}  // namespace
}  // namespace attend
