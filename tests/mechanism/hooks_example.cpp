// docs/hooks.md, kept true.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "attend/exact/softmax.h"
#include "attend/simd/dual.h"

namespace attend {
namespace {

struct Falling {
  float strength;
  template <class T>
  T operator()(T s, int, int, int i, int j) const {
    // log2 of the distance, rounded down: bits of the exponent.
    int distance = i - j, log = 0;
    for (int step = 8; step > 0; step /= 2) {
      const bool above = distance >> step != 0;
      distance = above ? distance >> step : distance;
      log += above ? step : 0;
    }
    return s - T(strength * static_cast<float>(log));
  }
};

TEST(Hooks, TheExampleOfTheDocumentation) {
  const int tokens = 700;
  std::vector<float> x(static_cast<size_t>(tokens * 16)), y(x.size()), lse(static_cast<size_t>(tokens)), dq(x.size());
  for (size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i) * 0.37f);
  const View view = dense_view(x.data(), DType::kF32, {1, 1, tokens, 16});
  const Qkv in{.q = view, .k = view, .v = view};
  const AttnOut out{dense_view(y.data(), DType::kF32, {1, 1, tokens, 16}),
                    dense_view(lse.data(), DType::kF32, {1, 1, tokens})};
  const AttnOutGrad loss{.out = view};
  const AttnGrad gradients{.q = dense_view(dq.data(), DType::kF32, {1, 1, tokens, 16})};
  Context context(2);

  // Sees its own paragraph of 256 tokens and every 16th token before it.
  auto paragraphs = [](int, int, int i, int j) { return j <= i && (i / 256 == j / 256 || j % 16 == 0); };
  const BlockMask mask = block_mask(paragraphs, {.queries = tokens, .keys = tokens}, context);
  // Scores fall with the logarithm of the distance, and have a slope for the backward pass.
  const Falling falling{0.5f};
  const Hook score = make_hook(falling), slope = score_slope(falling);
  const Variant variant{.score = &score, .mask = &mask, .score_slope = &slope};
  softmax_attention(in, {}, out, context, variant);
  softmax_attention_backward(in, {}, out, loss, gradients, context, variant);

  // The first query sees itself alone; weights of others add up to one over values within [-1, 1].
  for (size_t c = 0; c < 16; ++c) EXPECT_NEAR(y[c], x[c], 1e-6);
  for (size_t i = 0; i < y.size(); ++i) {
    EXPECT_LE(std::abs(y[i]), 1);
    EXPECT_TRUE(std::isfinite(dq[i]));
  }
  // A query of the last paragraph, summed in double.
  const int i = 600;
  std::vector<double> want(16, 0);
  double sum = 0;
  for (int j = 0; j <= i; ++j) {
    if (!paragraphs(0, 0, i, j)) continue;
    double s = 0;
    for (int c = 0; c < 16; ++c) s += double{x[static_cast<size_t>(i * 16 + c)]} * x[static_cast<size_t>(j * 16 + c)];
    const double w = std::exp(s / 4 - (i == j ? 0 : 0.5 * std::floor(std::log2(i - j))));
    sum += w;
    for (size_t c = 0; c < 16; ++c) want[c] += w * x[static_cast<size_t>(j * 16) + c];
  }
  for (size_t c = 0; c < 16; ++c) EXPECT_NEAR(y[static_cast<size_t>(i * 16) + c], want[c] / sum, 1e-5);
}

}  // namespace
}  // namespace attend
