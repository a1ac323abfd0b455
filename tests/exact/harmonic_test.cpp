#include "attend/exact/harmonic.h"

#include <cmath>

#include "attend/tensor/error.h"
#include "exact/score_limits.h"

namespace attend {
namespace {

class HarmonicSeries : public test::EachIsa {};

TEST_P(HarmonicSeries, WithoutSlopesItIsRotaryAttention) {
  test::SmallCall call(1, 4, 2, 33, 70, 16, 12);
  Context context = this->context();
  std::vector<float> zeros(4, 0.0f);
  const View none = dense_view(zeros.data(), DType::kF32, {4});
  rope_attention(call.in(), {}, {}, {.causal = true}, call.outputs(), context);
  const std::vector<float> rotary = call.out;
  for (const bool added : {false, true}) {
    harmonic_attention(call.in(), none, {.causal = true, .added = added}, call.outputs(), context);
    EXPECT_EQ(call.out, rotary);
    harmonic_attention(call.in(), {}, {.causal = true, .added = added}, call.outputs(), context);
    EXPECT_NE(call.out, rotary);
  }
}

// Keys that turn back to one vector have one score; then weights show the series alone, near and far.
TEST_P(HarmonicSeries, FactorsAreItsTermsAndSumsItsSums) {
  constexpr int64_t kKeys = 500;
  const double score = 3, slopes[] = {1, 0.25};
  for (const bool added : {false, true})
    for (int32_t position : {499, 20000}) {
      test::SmallCall call = test::weights_call(2, 1, kKeys, 2);
      auto turned = [](std::vector<float>& to, int64_t row, double length, double at) {
        to[static_cast<size_t>(row * 2)] = static_cast<float>(length * std::cos(at));
        to[static_cast<size_t>(row * 2 + 1)] = static_cast<float>(length * std::sin(-at));
      };
      for (int64_t h = 0; h < 2; ++h) {
        turned(call.q, h, score, position);
        for (int64_t j = 0; j < kKeys; ++j) turned(call.k, h * kKeys + j, 1, static_cast<double>(j));
      }
      std::vector<float> given = {1, 0.25f};
      Qkv in = call.in();
      in.q_positions = dense_view(&position, DType::kI32, {1, 1});
      Context context = this->context();
      harmonic_attention(in, dense_view(given.data(), DType::kF32, {2}), {.causal = true, .scale = 1, .added = added},
                         call.outputs(), context);
      for (int64_t h = 0; h < 2; ++h) {
        std::vector<double> weight(kKeys);
        double series = 0, sum = 0;
        for (int64_t d = 0; d <= position; ++d) {
          if (d > 0) series += 1 / static_cast<double>(d);
          if (position - d >= kKeys) continue;
          const double s = added ? score - slopes[h] * series : score / (1 + slopes[h] * static_cast<double>(d));
          sum += weight[static_cast<size_t>(position - d)] = std::exp(s);
        }
        for (int64_t j = 0; j < kKeys; ++j) {
          const double want = weight[static_cast<size_t>(j)] / sum;
          EXPECT_NEAR(call.out[static_cast<size_t>(h * kKeys + j)], want, 1e-5 * want) << h << ", " << j;
        }
      }
    }
}

TEST(HarmonicRefuses, SlopesBelowZero) {
  test::SmallCall call(1, 2, 1, 2, 3, 8, 8);
  Context context(1);
  std::vector<float> given = {1, -1};
  const View slopes = dense_view(given.data(), DType::kF32, {2}), one = dense_view(given.data(), DType::kF32, {1});
  EXPECT_THROW(harmonic_attention(call.in(), slopes, {}, call.outputs(), context), Error);
  EXPECT_THROW(harmonic_attention(call.in(), one, {}, call.outputs(), context), Error);
}

ATTEND_EACH_ISA(HarmonicSeries);

}  // namespace
}  // namespace attend
