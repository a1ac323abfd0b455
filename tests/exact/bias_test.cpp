// Learned biases of distances: T5's buckets, FIRE's network, URPE's multipliers.
#include <cmath>

#include "attend/exact/fire.h"
#include "attend/exact/kerple.h"
#include "attend/exact/t5_bias.h"
#include "attend/exact/urpe.h"
#include "exact/call.h"

namespace attend {
namespace {

class Biases : public testing::TestWithParam<Isa> {};

// The bias of one distance is the lse of a query of zeros with one key: T5's own bucket boundaries.
TEST_P(Biases, T5BucketsAreThoseOfItsAuthors) {
  constexpr int64_t kBuckets = 32;
  std::vector<float> table(kBuckets);
  for (size_t b = 0; b < kBuckets; ++b) table[b] = static_cast<float>(b);
  Context context = test::context_for(GetParam());
  auto bucket = [&](int32_t relative, bool causal) {  // of key 1000 + relative for the query at 1000
    float q = 0, k = 0, v = 1, out = 0, lse = -1;
    int32_t position = 1000, key = 1000 + relative;
    const KeyRun run{&k, &v, 1, 1, 0, 1};
    const KeyView view{std::span(&run, 1), std::span(&key, 1)};
    const Qkv in{.q = dense_view(&q, DType::kF32, {1, 1, 1, 1}),
                 .keys = std::span(&view, 1),
                 .dv = 1,
                 .q_positions = dense_view(&position, DType::kI32, {1, 1})};
    t5_bias_attention(in, dense_view(table.data(), DType::kF32, {kBuckets, 1}), {.causal = causal},
                      {dense_view(&out, DType::kF32, {1, 1, 1, 1}), dense_view(&lse, DType::kF32, {1, 1, 1})}, context);
    return std::lround(lse);
  };
  const std::pair<int, int> both[] = {{0, 0},     {-1, 1},   {-7, 7},   {-8, 8},   {-11, 8},
                                      {-12, 9},   {-16, 10}, {-32, 12}, {-64, 14}, {-127, 15},
                                      {-500, 15}, {1, 17},   {7, 23},   {8, 24},   {500, 31}};
  for (const auto& [relative, expected] : both) EXPECT_EQ(bucket(relative, false), expected) << relative;
  const std::pair<int, int> past[] = {{0, 0},    {-15, 15}, {-16, 16},  {-18, 16}, {-19, 17},
                                      {-32, 21}, {-64, 26}, {-128, 31}, {-999, 31}};
  for (const auto& [relative, expected] : past) EXPECT_EQ(bucket(relative, true), expected) << relative;
}

// A network of one unit, f(x) = -a x, is KERPLE's logarithm with amount a / phi(threshold) up to the threshold.
TEST_P(Biases, FireWithALinearNetworkIsKerple) {
  test::SmallCall call(1, 2, 1, 90, 120, 16, 16);
  Context context = test::context_for(GetParam());
  float ones[] = {1}, zeros[] = {0}, weights[] = {-3, -0.5f}, rates[] = {0.1f, 0.1f}, amounts[2];
  const double phi = std::log(1 + 0.1 * 512);
  for (int h = 0; h < 2; ++h) amounts[h] = static_cast<float>(-weights[h] / phi);
  fire_attention(call.in(),
                 {dense_view(ones, DType::kF32, {1}), dense_view(zeros, DType::kF32, {1}),
                  dense_view(weights, DType::kF32, {2, 1})},
                 {.causal = true}, call.outputs(), context);
  const std::vector<float> fire = call.out;
  kerple_attention(call.in(), {dense_view(amounts, DType::kF32, {2}), dense_view(rates, DType::kF32, {2})},
                   {.causal = true, .log = true}, call.outputs(), context);
  for (size_t i = 0; i < fire.size(); ++i) EXPECT_NEAR(fire[i], call.out[i], 2e-5);
}

TEST_P(Biases, UrpeMultipliesWeightsAfterTheSoftmax) {
  test::SmallCall call(1, 2, 1, 50, 700, 16, 16);
  Context context = test::context_for(GetParam());
  softmax_attention(call.in(), {}, call.outputs(), context);
  const std::vector<float> plain = call.out, lse = call.lse;
  std::vector<float> table(2 * 101, 1.0f);
  const View multiplier = dense_view(table.data(), DType::kF32, {2, 101});
  auto run = [&] {
    urpe_attention(call.in(), multiplier, {}, {}, call.outputs(), context);
    return call.out;
  };
  EXPECT_EQ(run(), plain);
  EXPECT_EQ(call.lse, lse);

  // Two multipliers that add up to 1: so do their results, and neither is the plain one.
  for (size_t r = 0; r < table.size(); ++r) table[r] = r % 3 == 0 ? 0.75f : -0.25f;
  const std::vector<float> first = run();
  for (float& x : table) x = 1 - x;
  const std::vector<float> second = run();
  EXPECT_NE(first, plain);
  for (size_t i = 0; i < plain.size(); ++i) EXPECT_NEAR(first[i] + second[i], plain[i], 1e-5);

  // Where all values are equal a softmax hides the multipliers; this doesn't: what the title of the paper is about.
  std::fill(call.v.begin(), call.v.end(), 1.0f);
  const std::vector<float> seen = run();
  EXPECT_GT(std::abs(seen[0] - 1), 0.01);
}

INSTANTIATE_TEST_SUITE_P(Usable, Biases, testing::ValuesIn(test::usable_isas()),
                         [](const auto& usable) { return std::string(name_of(usable.param)); });

}  // namespace
}  // namespace attend
