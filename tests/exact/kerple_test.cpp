#include "attend/exact/kerple.h"

#include <cmath>

#include "attend/simd/hook_math.h"
#include "exact/call.h"
#include "exact/elementary.h"

namespace attend {
namespace {

constexpr double kUnit = 0x1p-24;

TEST(Elementary, StayWithinTheirErrors) {
  double log_error = 0, exp_error = 0, power_error = 0, sigmoid_error = 0;
  for (int n = 1; n < 200000; ++n) {
    const float x = static_cast<float>(n) * 0.37f;
    log_error = std::max(log_error, std::abs(exact::log_of(x) / std::log(static_cast<double>(x)) - 1));
    const float y = (static_cast<float>(n) - 100000) * 7.9e-4f;
    exp_error = std::max(exp_error, std::abs(hook_exp(y) / std::exp(static_cast<double>(y)) - 1));
    sigmoid_error = std::max(sigmoid_error, std::abs(hook_sigmoid(y) * (1 + std::exp(-static_cast<double>(y))) - 1));
    const float d = static_cast<float>(n), p = 0.001f + 1.999f * static_cast<float>(n % 997) / 997;
    power_error = std::max(
        power_error, std::abs(exact::power_of(d, p) / std::pow(static_cast<double>(d), static_cast<double>(p)) - 1));
  }
  EXPECT_LT(log_error, 4 * kUnit);
  EXPECT_LT(exp_error, 4 * kUnit);
  EXPECT_LT(power_error, 10 * kUnit);
  EXPECT_LT(sigmoid_error, 7 * kUnit);
  EXPECT_EQ(exact::log_of(1), 0);
  EXPECT_EQ(exact::power_of(1, 1.7f), 1);
}

class Kerple : public testing::TestWithParam<Isa> {};

// The authors' slopes for 8 heads, and for 6: four of a power of two, then every other one of eight.
TEST_P(Kerple, WithoutParametersItIsAlibi) {
  for (const std::vector<double>& powers : {std::vector<double>{1, 2, 3, 4, 5, 6, 7, 8}, {2, 4, 6, 8, 1, 3}}) {
    const int64_t heads = static_cast<int64_t>(powers.size());
    test::SmallCall call(1, heads, heads / 2, 40, 70, 16, 16);
    Context context = test::context_for(GetParam());
    kerple_attention(call.in(), {}, {.causal = true}, call.outputs(), context);
    const std::vector<float> alibi = call.out;
    std::vector<float> bias(static_cast<size_t>(heads * 40 * 70));
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < 40; ++i)
        for (int64_t j = 0; j < 70; ++j)
          bias[static_cast<size_t>((h * 40 + i) * 70 + j)] = static_cast<float>(
              -std::exp2(-powers[static_cast<size_t>(h)]) * std::abs(static_cast<double>(i + 30 - j)));
    Qkv in = call.in();
    in.bias = dense_view(bias.data(), DType::kF32, {1, heads, 40, 70});
    softmax_attention(in, {.causal = true}, call.outputs(), context);
    EXPECT_EQ(alibi, call.out) << heads << " heads";
  }
}

TEST_P(Kerple, ThePowerOneIsAlibiAndTheRateZeroFallsNowhere) {
  test::SmallCall call(1, 2, 1, 33, 60, 16, 8);
  Context context = test::context_for(GetParam());
  softmax_attention(call.in(), {}, call.outputs(), context);
  const std::vector<float> plain = call.out;
  float amounts[] = {0.0625f, 0.00390625f}, ones[] = {1, 1}, zeros[] = {0, 0};  // ALiBi's for two heads
  const View amount = dense_view(amounts, DType::kF32, {2}), one = dense_view(ones, DType::kF32, {2}),
             zero = dense_view(zeros, DType::kF32, {2});
  kerple_attention(call.in(), {amount, zero}, {.log = true}, call.outputs(), context);
  EXPECT_EQ(plain, call.out);
  kerple_attention(call.in(), {amount, one}, {}, call.outputs(), context);
  const std::vector<float> power = call.out;
  kerple_attention(call.in(), {}, {}, call.outputs(), context);
  for (size_t i = 0; i < power.size(); ++i) EXPECT_NEAR(power[i], call.out[i], 1e-4);
  EXPECT_NE(plain, call.out);
}

INSTANTIATE_TEST_SUITE_P(Usable, Kerple, testing::ValuesIn(test::usable_isas()),
                         [](const auto& usable) { return std::string(name_of(usable.param)); });

}  // namespace
}  // namespace attend
