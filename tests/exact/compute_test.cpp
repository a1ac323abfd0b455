// Products in bf16, int8 and fp8: what they round, and what that costs.
#include <algorithm>
#include <cmath>
#include <functional>

#include "attend/reference/softmax.h"
#include "attend/tensor/error.h"
#include "exact/call.h"

namespace attend {
namespace {

std::vector<double> definition(test::SmallCall& call, const SoftmaxOptions& options) {
  std::vector<double> out(call.out.size());
  Context context(1);
  const Qkv in = call.in();
  const View to = dense_view(out.data(), DType::kF64, {call.b, call.hq, call.tq, call.dv});
  make_softmax_reference(options)->forward({{"q", in.q}, {"k", in.k}, {"v", in.v}}, {{"out", to}}, Form::kAny, context);
  return out;
}

double root_mean_square(const std::vector<float>& got, const std::vector<double>& want) {
  double sum = 0;
  for (size_t i = 0; i < want.size(); ++i) sum += (got[i] - want[i]) * (got[i] - want[i]);
  return std::sqrt(sum / static_cast<double>(want.size()));
}

class Computes : public testing::TestWithParam<Isa> {};

// Where inputs are bf16 already, only weights are rounded: out moves by at most half a unit in the last of 8 bits.
TEST_P(Computes, Bf16RoundsOnlyWeightsOfInputsInBf16) {
  for (const int64_t width : {64, 80, 33}) {
    test::SmallCall call(1, 4, 2, 70, 700, width, width);
    for (auto* x : {&call.q, &call.k, &call.v})
      for (float& e : *x) e = to_f32(to_bf16(e));
    const float largest = std::abs(
        *std::max_element(call.v.begin(), call.v.end(), [](float a, float b) { return std::abs(a) < std::abs(b); }));
    Context context = test::context_for(GetParam(), 2);
    const SoftmaxOptions options{.causal = true};
    call.run({.causal = true, .compute = Compute::kBF16}, context);
    const std::vector<double> want = definition(call, options);
    bool differs = false;
    for (size_t i = 0; i < want.size(); ++i) {
      EXPECT_NEAR(call.out[i], want[i], largest * (0x1p-8 + 2e-5)) << "width " << width << ", element " << i;
      differs |= std::abs(call.out[i] - want[i]) > 1e-5;
    }
    EXPECT_TRUE(differs) << "nothing was rounded";
  }
}

// So it is where scores are not products alone.
TEST_P(Computes, ScoresInBf16AreCappedAndBiased) {
  test::SmallCall call(1, 4, 2, 70, 700, 64, 64);
  for (auto* x : {&call.q, &call.k, &call.v})
    for (float& e : *x) e = to_f32(to_bf16(3 * e));
  std::vector<float> bias(700);
  for (size_t j = 0; j < bias.size(); ++j) bias[j] = static_cast<float>(j % 7) / 4;
  Context context = test::context_for(GetParam(), 2);
  for (const bool biased : {false, true}) {
    SoftmaxOptions options{.causal = true, .softcap = 2};
    Qkv in = call.in();
    if (biased) in.bias = dense_view(bias.data(), DType::kF32, {1, 1, 1, 700});
    std::vector<double> want(call.out.size());
    Tensors inputs{{"q", in.q}, {"k", in.k}, {"v", in.v}};
    if (biased) inputs.insert({"bias", in.bias});
    make_softmax_reference(options)->forward(inputs, {{"out", dense_view(want.data(), DType::kF64, {1, 4, 70, 64})}},
                                             Form::kAny, context);
    options.compute = Compute::kBF16;
    softmax_attention(in, options, call.outputs(), context);
    for (size_t i = 0; i < want.size(); ++i)
      ASSERT_NEAR(call.out[i], want[i], 3 * (0x1p-8 + 2e-5)) << (biased ? "biased, " : "") << "element " << i;
  }
}

// One key: lse is its score.
TEST_P(Computes, AScoreIsTheProductOfItsIntegers) {
  for (const int64_t width : {64, 40, 7}) {
    test::SmallCall call(1, 3, 3, 5, 1, width, width);
    Context context = test::context_for(GetParam());
    call.run({.compute = Compute::kInt8}, context);
    auto quantised = [&](const float* x) {
      float largest = 0;
      for (int64_t i = 0; i < width; ++i) largest = std::max(largest, std::abs(x[i]));
      std::vector<double> q;
      for (int64_t i = 0; i < width; ++i) q.push_back(std::nearbyint(x[i] * (127 / largest)));
      return std::pair(q, largest / 127.0);
    };
    for (int64_t h = 0; h < 3; ++h)
      for (int64_t i = 0; i < 5; ++i) {
        const auto [q, q_scale] = quantised(call.q.data() + (h * 5 + i) * width);
        const auto [k, k_scale] = quantised(call.k.data() + h * width);
        double sum = 0;
        for (int64_t c = 0; c < width; ++c) sum += q[static_cast<size_t>(c)] * k[static_cast<size_t>(c)];
        const double score = sum * q_scale * k_scale / std::sqrt(static_cast<double>(width));
        EXPECT_NEAR(call.lse[static_cast<size_t>(h * 5 + i)], score, 1e-6 * (1 + std::abs(score))) << "width " << width;
      }
  }
}

// The experiment of FlashAttention-3 (arXiv:2407.08608, section 4.3): normal entries, one in a thousand with another
// normal of deviation 10 on top.
test::SmallCall with_outliers() {
  test::SmallCall call(1, 4, 4, 512, 512, 64, 64, 5);
  std::mt19937_64 random(6);
  std::normal_distribution<float> normal(0, 1);
  std::bernoulli_distribution rare(0.001);
  for (auto* x : {&call.q, &call.k, &call.v})
    for (float& e : *x) e = normal(random) + (rare(random) ? 10 * normal(random) : 0);
  return call;
}

// One scale for all of q, of k and of v, and weights left exact: less than per-tensor quantisation loses.
double error_of_one_scale_a_tensor(const std::vector<double>& want,
                                   const std::function<double(double, double)>& round) {
  test::SmallCall rounded = with_outliers();
  for (auto* x : {&rounded.q, &rounded.k, &rounded.v}) {
    double largest = 0;
    for (float e : *x) largest = std::max(largest, std::abs(static_cast<double>(e)));
    for (float& e : *x) e = static_cast<float>(round(e, largest));
  }
  const std::vector<double> approximate = definition(rounded, {});
  return root_mean_square(std::vector<float>(approximate.begin(), approximate.end()), want);
}

double to_int8(double x, double largest) {
  return std::nearbyint(x * 127 / largest) * largest / 127;
}
double to_e4m3(double x, double largest) {
  const double y = x * 448 / largest, unit = std::exp2(std::max(std::floor(std::log2(std::abs(y))), -6.0) - 3);
  return y == 0 ? 0 : std::nearbyint(y / unit) * unit * largest / 448;
}

TEST_P(Computes, RowsOfTheirOwnScaleAndATurnLoseLessThanOneScaleATensor) {
  test::SmallCall call = with_outliers();
  static const std::vector<double> want = definition(call, {});
  auto error = [&](Compute compute) {
    Context context = test::context_for(GetParam(), 2);
    call.run({.compute = compute}, context);
    return root_mean_square(call.out, want);
  };
  static const double int8_tensor = error_of_one_scale_a_tensor(want, to_int8),
                      fp8_tensor = error_of_one_scale_a_tensor(want, to_e4m3);
  const double int8 = error(Compute::kInt8), int8_turned = error(Compute::kInt8Hadamard);
  const double fp8 = error(Compute::kFp8), fp8_turned = error(Compute::kFp8Hadamard);
  std::printf(
      "root mean square errors, %s: int8 %.2e a tensor, %.2e a row, %.2e turned; fp8 %.2e, %.2e, %.2e; bf16 %.2e\n",
      std::string(name_of(GetParam())).c_str(), int8_tensor, int8, int8_turned, fp8_tensor, fp8, fp8_turned,
      error(Compute::kBF16));
  EXPECT_LT(int8, int8_tensor);
  EXPECT_LT(int8_turned, int8);
  EXPECT_LT(fp8_turned, fp8_tensor);
  EXPECT_LT(2 * int8_turned, int8_tensor);
}

// Keys that a row does not see take no part, not even in the scales of what it does see.
TEST_P(Computes, HiddenKeysChangeNoScale) {
  for (const Compute compute :
       {Compute::kBF16, Compute::kInt8, Compute::kFp8, Compute::kInt8Hadamard, Compute::kInt8Qk}) {
    test::SmallCall call(1, 2, 1, 100, 100, 32, 32);
    Context context = test::context_for(GetParam());
    call.run({.causal = true, .compute = compute}, context);
    const std::vector<float> before = call.out;
    for (int64_t j = 50; j < 100; ++j)
      for (int64_t c = 0; c < 32; ++c) {
        call.k[static_cast<size_t>(j * 32 + c)] *= 100;
        call.v[static_cast<size_t>(j * 32 + c)] *= 1000;
      }
    call.run({.causal = true, .compute = compute}, context);
    for (int64_t h = 0; h < 2; ++h)
      for (int64_t i = 0; i < 50 * 32; ++i) {
        const size_t at = static_cast<size_t>(h * 100 * 32 + i);
        ASSERT_EQ(before[at], call.out[at]) << name_of(compute) << ", element " << at;
      }
  }
}

// Keys that share an offset by channel, as those of many models do, up to the newest. A bias of zeros hides nothing and
// could: with one, keys are rounded as they are.
TEST_P(Computes, KeysLessTheirMeanLoseLittleWhereChannelsHaveOffsets) {
  test::SmallCall call(1, 4, 2, 100, 350, 64, 64, 7);
  std::mt19937_64 random(8);
  std::normal_distribution<float> normal(0, 1);
  for (int64_t c = 0; c < 64; c += 8) {
    const float offset = 20 * normal(random);
    for (int64_t j = 0; j < 2 * 350; ++j) call.k[static_cast<size_t>(j * 64 + c)] += offset;
  }
  const std::vector<double> want = definition(call, {.causal = true});
  Context context = test::context_for(GetParam(), 2);
  auto error = [&](Compute compute, bool with_bias) {
    float zero = 0;
    View bias = dense_view(&zero, DType::kF32, {1, 1, 1, 1});
    Qkv in = call.in();
    if (with_bias) in.bias = bias;
    softmax_attention(in, {.causal = true, .compute = compute}, call.outputs(), context);
    return root_mean_square(call.out, want);
  };
  const double smoothed = error(Compute::kInt8Qk, false), rounded = error(Compute::kInt8Qk, true),
               bf16 = error(Compute::kBF16, false);
  std::printf("root mean square errors, keys with offsets, %s: int8-qk %.2e smoothed, %.2e not; bf16 %.2e\n",
              std::string(name_of(GetParam())).c_str(), smoothed, rounded, bf16);
  EXPECT_LT(4 * smoothed, rounded);
}

// What is taken off keys is a mean of such as the row sees, so it makes no difference what the others are, nor whether
// they are there yet: in the first blocks of 64 keys, and in those of the second split.
TEST_P(Computes, SmoothedKeysDoNotDependOnWhatARowDoesNotSee) {
  constexpr int64_t kTokens = 590;
  test::SmallCall whole(1, 2, 1, kTokens, kTokens, 40, 32);
  for (float& e : whole.k) e += 3;
  Context context = test::context_for(GetParam(), 2);
  for (const int64_t window : {0, 100}) {
    const SoftmaxOptions options{.causal = true, .window = window, .compute = Compute::kInt8Qk};
    whole.run(options, context);
    for (int64_t i = 0; i < kTokens; i += i < 200 || i > 500 ? 1 : 50) {
      test::SmallCall step(1, 2, 1, 1, i + 1, 40, 32);
      for (int64_t h = 0; h < 2; ++h) std::copy_n(whole.q.data() + (h * kTokens + i) * 40, 40, step.q.data() + h * 40);
      std::copy_n(whole.k.data(), (i + 1) * 40, step.k.data());
      std::copy_n(whole.v.data(), (i + 1) * 32, step.v.data());
      if (window > 0)
        for (int64_t c = 0; c < std::max<int64_t>(0, i + 1 - window) * 40; ++c) step.k[static_cast<size_t>(c)] = NAN;
      step.run(options, context);
      for (int64_t h = 0; h < 2; ++h)
        for (int64_t c = 0; c < 32; ++c)
          ASSERT_EQ(whole.out[static_cast<size_t>((h * kTokens + i) * 32 + c)],
                    step.out[static_cast<size_t>(h * 32 + c)])
              << "window " << window << ", query " << i << ", head " << h << ", element " << c;
    }
  }
}

TEST_P(Computes, WeightsOtherThanThoseOfASoftmaxAreRefused) {
  test::SmallCall call(1, 1, 1, 3, 9, 8, 8);
  Context context = test::context_for(GetParam());
  auto same = [](float p, int, int, int, int) { return p; };
  const Hook hook = make_hook(same);
  EXPECT_THROW(call.run({.compute = Compute::kInt8}, context, {.weight = &hook}), Error);
  EXPECT_THROW(call.run({.compute = Compute::kFp8}, context, {.normalizer = Normalizer::kSignedSoftmax}), Error);
  EXPECT_NO_THROW(call.run({.compute = Compute::kBF16}, context, {.weight = &hook}));
  EXPECT_NO_THROW(call.run({.compute = Compute::kInt8Qk}, context, {.weight = &hook}));
}

INSTANTIATE_TEST_SUITE_P(Usable, Computes, testing::ValuesIn(test::usable_isas()),
                         [](const auto& usable) { return std::string(name_of(usable.param)); });

}  // namespace
}  // namespace attend
