// What the conformance grid does not reach of the backward pass: hooks, masks, dropout, biases that axes share.
#include <algorithm>
#include <cmath>
#include <functional>

#include "attend/exact/dropout.h"
#include "attend/simd/dual.h"
#include "attend/tensor/error.h"
#include "exact/call.h"

namespace attend {
namespace {

struct Cap {
  template <class T>
  T operator()(T s, int, int head, int i, int j) const {
    return T(3.0f) * tanh(s / T(3.0f)) + T(0.01f * static_cast<float>((j - i) * (head + 1)));
  }
};

struct Gradients {
  std::vector<float> q, k, v, bias, sinks;
};

class BackwardPass : public testing::TestWithParam<Isa> {
 protected:
  static View view(std::vector<float>& x, const View& like) {
    x.assign(static_cast<size_t>(like.count()), NAN);
    return dense_view(x.data(), DType::kF32, like.rank, like.shape);
  }

  // Gradients of sum(out * d_out), with d_out fixed by the seed.
  Gradients gradients(test::SmallCall& call, const Qkv& in, const SoftmaxOptions& options, const Variant& variant,
                      int threads = 2) {
    Context context = test::context_for(GetParam(), threads);
    softmax_attention(in, options, call.outputs(), context, variant);
    Gradients g;
    AttnGrad to{.q = view(g.q, in.q), .k = view(g.k, in.k), .v = view(g.v, in.v)};
    if (in.bias.data) to.bias = view(g.bias, in.bias);
    if (in.sink_logits.data) to.sink_logits = view(g.sinks, in.sink_logits);
    std::vector<float> d_out = weights(call.out.size());
    softmax_attention_backward(in, options, call.outputs(),
                               {.out = dense_view(d_out.data(), DType::kF32, {call.b, call.hq, call.tq, call.dv})}, to,
                               context, variant);
    return g;
  }

  static std::vector<float> weights(size_t count) {
    std::mt19937_64 random(99);
    std::normal_distribution<float> normal(0, 1);
    std::vector<float> w(count);
    for (float& x : w) x = normal(random);
    return w;
  }

  // Of the loss along one input's gradient, by differences of the forward pass in f32.
  void expect_slope(test::SmallCall& call, std::vector<float>& input, const std::vector<float>& gradient, const Qkv& in,
                    const SoftmaxOptions& options, const Variant& variant) {
    Context context = test::context_for(GetParam(), 1);
    const std::vector<float> w = weights(call.out.size());
    double norm = 0;
    for (float g : gradient) norm += double{g} * g;
    norm = std::sqrt(norm);
    const std::vector<float> kept = input;
    const double step = 0.02;
    auto loss = [&](double distance) {
      for (size_t i = 0; i < input.size(); ++i) input[i] = static_cast<float>(kept[i] + distance * gradient[i] / norm);
      softmax_attention(in, options, call.outputs(), context, variant);
      double sum = 0;
      for (size_t i = 0; i < w.size(); ++i) sum += double{w[i]} * call.out[i];
      return sum;
    };
    // Fourth order: errors of rounding 1e-5, of the formula step^4.
    const double slope = (8 * (loss(step) - loss(-step)) - (loss(2 * step) - loss(-2 * step))) / (12 * step);
    input = kept;
    EXPECT_NEAR(slope, norm, 2e-3 * norm + 2e-3);
  }
};

TEST_P(BackwardPass, ThroughAScoreHookWithItsOwnSlope) {
  const Cap cap;
  const Hook value = make_hook(cap), slope = score_slope(cap);
  const Variant variant{.score = &value, .score_slope = &slope};
  test::SmallCall call(1, 4, 2, 40, 300, 16, 24);
  const Qkv in = call.in();
  const Gradients g = gradients(call, in, {.causal = true}, variant);
  expect_slope(call, call.q, g.q, in, {.causal = true}, variant);
  expect_slope(call, call.k, g.k, in, {.causal = true}, variant);
  expect_slope(call, call.v, g.v, in, {.causal = true}, variant);
  EXPECT_THROW(gradients(call, in, {}, {.score = &value}), Error);
}

TEST_P(BackwardPass, ThroughDropout) {
  const Dropout drop{.probability = 0.3f, .seed = 7};
  const Hook hook = make_hook(drop);
  const Variant variant{.weight = &hook};
  test::SmallCall call(2, 2, 1, 50, 280, 16, 8);
  const Qkv in = call.in();
  const Gradients g = gradients(call, in, {.causal = true}, variant);
  expect_slope(call, call.q, g.q, in, {.causal = true}, variant);
  expect_slope(call, call.k, g.k, in, {.causal = true}, variant);
  expect_slope(call, call.v, g.v, in, {.causal = true}, variant);
}

TEST_P(BackwardPass, OfSignedSoftmax) {
  const Variant variant{.normalizer = Normalizer::kSignedSoftmax};
  test::SmallCall call(1, 2, 1, 30, 270, 8, 8);
  const Qkv in = call.in();
  const Gradients g = gradients(call, in, {.causal = true}, variant);
  expect_slope(call, call.v, g.v, in, {.causal = true}, variant);
  // In q and k the sign jumps where a score is 0: a step must not cross, so the loss is compared over a shorter text.
  test::SmallCall brief(1, 1, 1, 3, 4, 8, 8);
  const Gradients b = gradients(brief, brief.in(), {}, variant);
  expect_slope(brief, brief.q, b.q, brief.in(), {}, variant);
  expect_slope(brief, brief.k, b.k, brief.in(), {}, variant);
}

TEST_P(BackwardPass, AMaskGivesTheBitsOfTheOption) {
  Context context = test::context_for(GetParam(), 2);
  test::SmallCall call(1, 4, 2, 700, 700, 16, 16);
  const BlockMask mask =
      block_mask([](int, int, int i, int j) { return j <= i && i - j < 150; }, {1, 1, 700, 700}, context);
  const Gradients want = gradients(call, call.in(), {.causal = true, .window = 150}, {});
  const Gradients got = gradients(call, call.in(), {}, {.mask = &mask});
  EXPECT_EQ(want.q, got.q);
  EXPECT_EQ(want.k, got.k);
  EXPECT_EQ(want.v, got.v);
}

// The gradient of a bias that axes share is the sum of those of a bias of its own for every pair.
TEST_P(BackwardPass, OfABiasThatAxesShare) {
  test::SmallCall call(2, 4, 2, 110, 290, 8, 8);
  const int64_t full[] = {2, 4, 110, 290};
  for (int shared = 0; shared < 16; ++shared) {
    Shape shape{};
    int64_t count = 1;
    for (int a = 0; a < 4; ++a) count *= shape[static_cast<size_t>(a)] = shared >> a & 1 ? 1 : full[a];
    std::vector<float> bias = weights(static_cast<size_t>(count)), wide;
    for (int64_t i = 0; i < 2 * 4 * 110 * 290; ++i) {
      int64_t at = 0, index[] = {i / (4 * 110 * 290), i / (110 * 290) % 4, i / 290 % 110, i % 290};
      for (int a = 0; a < 4; ++a) at = at * shape[static_cast<size_t>(a)] + (shared >> a & 1 ? 0 : index[a]);
      wide.push_back(bias[static_cast<size_t>(at)]);
    }
    Qkv in = call.in();
    in.bias = dense_view(wide.data(), DType::kF32, {2, 4, 110, 290});
    const Gradients each = gradients(call, in, {.causal = true}, {});
    in.bias = dense_view(bias.data(), DType::kF32, 4, shape);
    const Gradients together = gradients(call, in, {.causal = true}, {}, 2),
                    alone = gradients(call, in, {.causal = true}, {}, 1);
    EXPECT_EQ(together.bias, alone.bias) << "depends on the threads";
    std::vector<double> sums(static_cast<size_t>(count), 0), magnitudes(static_cast<size_t>(count), 0);
    for (int64_t i = 0; i < 2 * 4 * 110 * 290; ++i) {
      int64_t at = 0, index[] = {i / (4 * 110 * 290), i / (110 * 290) % 4, i / 290 % 110, i % 290};
      for (int a = 0; a < 4; ++a) at = at * shape[static_cast<size_t>(a)] + (shared >> a & 1 ? 0 : index[a]);
      sums[static_cast<size_t>(at)] += each.bias[static_cast<size_t>(i)];
      magnitudes[static_cast<size_t>(at)] += std::abs(each.bias[static_cast<size_t>(i)]);
    }
    for (size_t i = 0; i < sums.size(); ++i)
      ASSERT_NEAR(sums[i], together.bias[i], 1e-5 * (1 + magnitudes[i])) << "shared axes " << shared;
  }
}

TEST_P(BackwardPass, KeepsABadValueWhereItIsSeen) {
  test::SmallCall call(1, 2, 1, 300, 300, 8, 8);
  const Gradients clean = gradients(call, call.in(), {.causal = true, .window = 20}, {});
  for (size_t c = 0; c < 8; ++c) call.k[280 * 8 + c] = NAN;
  const Gradients g = gradients(call, call.in(), {.causal = true, .window = 20}, {});
  for (size_t i = 0; i < 300; ++i)
    for (size_t c = 0; c < 8; ++c) {
      EXPECT_EQ(std::isnan(g.q[i * 8 + c]), i >= 280) << "query " << i;
      // Keys that share a query with the bad one.
      EXPECT_EQ(std::isnan(g.k[i * 8 + c]), i > 260) << "key " << i;
      if (i <= 260) {
        EXPECT_NEAR(g.k[i * 8 + c], clean.k[i * 8 + c], 1e-4);
      }
    }
}

TEST_P(BackwardPass, IsZeroForKeysThatDoNotExistAndQueriesThatSeeNone) {
  test::SmallCall call(3, 4, 2, 120, 300, 8, 12);
  std::vector<int64_t> lengths{300, 0, 70};
  Qkv in = call.in();
  in.kv_lens = dense_view(lengths.data(), DType::kI64, {3});
  const Gradients g = gradients(call, in, {}, {});
  auto zeros = [](const std::vector<float>& x, size_t begin, size_t end) {
    return std::all_of(x.begin() + static_cast<std::ptrdiff_t>(begin), x.begin() + static_cast<std::ptrdiff_t>(end),
                       [](float e) { return e == 0; });
  };
  for (size_t b = 0; b < 3; ++b) {
    EXPECT_EQ(zeros(g.q, b * 4 * 120 * 8, (b + 1) * 4 * 120 * 8), lengths[b] == 0) << "batch entry " << b;
    for (size_t head = 2 * b; head < 2 * b + 2; ++head) {
      const size_t count = static_cast<size_t>(lengths[b]);
      EXPECT_TRUE(zeros(g.k, (head * 300 + count) * 8, (head + 1) * 300 * 8)) << "batch entry " << b;
      EXPECT_TRUE(zeros(g.v, (head * 300 + count) * 12, (head + 1) * 300 * 12)) << "batch entry " << b;
      for (size_t j = 0; j < count; ++j)
        EXPECT_FALSE(zeros(g.v, (head * 300 + j) * 12, (head * 300 + j + 1) * 12)) << "key " << j;
    }
  }
}

TEST_P(BackwardPass, RefusesWhatItCannotDo) {
  test::SmallCall call(1, 1, 1, 4, 4, 8, 8);
  auto same = [](float x, int, int, int, int) { return x; };
  const Hook hook = make_hook(same);
  EXPECT_THROW(gradients(call, call.in(), {}, {.final_weight = &hook}), Error);
  Context context = test::context_for(GetParam());
  std::vector<float> d(32), wrong(31);
  const AttnOutGrad loss{.out = dense_view(d.data(), DType::kF32, {1, 1, 4, 8})};
  const View short_view = dense_view(wrong.data(), DType::kF32, {1, 1, 3, 8});
  EXPECT_THROW(softmax_attention_backward(call.in(), {}, call.outputs(), loss, {.q = short_view}, context), Error);
  EXPECT_THROW(softmax_attention_backward(call.in(), {}, call.outputs(), {}, {}, context), Error);
  EXPECT_THROW(softmax_attention_backward(call.in(), {}, call.outputs(), loss, {.bias = call.in().q}, context), Error);
  EXPECT_THROW(softmax_attention_backward(call.in(), {}, call.outputs(), loss, {.q = call.in().q}, context), Error);
}

INSTANTIATE_TEST_SUITE_P(Usable, BackwardPass, testing::ValuesIn(test::usable_isas()),
                         [](const auto& usable) { return std::string(name_of(usable.param)); });

TEST(DropoutOfWeights, DropsTheShareItSays) {
  const Dropout drop{.probability = 0.3f, .seed = 12345678901234};
  int dropped = 0, agree = 0;
  for (int i = 0; i < 300; ++i)
    for (int j = 0; j < 300; ++j) {
      const float w = drop(1.0f, 1, 2, i, j);
      EXPECT_TRUE(w == 0 || w == 1 / 0.7f);
      dropped += w == 0;
      agree += (w == 0) == (drop(1.0f, 1, 3, i, j) == 0);
    }
  // Six deviations of 90,000 draws.
  EXPECT_NEAR(dropped / 90000.0, 0.3, 6 * std::sqrt(0.21 / 90000));
  EXPECT_NEAR(agree / 90000.0, 0.58, 6 * std::sqrt(0.58 * 0.42 / 90000));
}

}  // namespace
}  // namespace attend
