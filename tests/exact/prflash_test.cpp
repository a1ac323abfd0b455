#include "attend/exact/prflash.h"

#include <array>
#include <cmath>

#include "attend/tensor/error.h"
#include "exact/score_limits.h"

namespace attend {
namespace {

class PrFlash : public test::EachIsa {
 protected:
  std::vector<float> run(test::SmallCall& call, const PrFlashOptions& options, const View& probability = {}) const {
    Context context = this->context();
    prflash_attention(call.in(), probability, options, call.outputs(), context);
    return call.out;
  }
  std::vector<float> plain(test::SmallCall& call, const SoftmaxOptions& options) const {
    Context context = this->context();
    softmax_attention(call.in(), options, call.outputs(), context);
    return call.out;
  }
};

TEST_P(PrFlash, WithEveryBlockItIsCausalSoftmaxAttention) {
  test::SmallCall call(2, 4, 2, 300, 300, 16, 16);
  const std::vector<float> all = plain(call, {.causal = true});
  EXPECT_EQ(run(call, {.power = 0}), all);
  EXPECT_EQ(run(call, {.block = 7, .power = 0, .seed = 9}), all);
  EXPECT_EQ(run(call, {.block = 1000, .power = 3}), all);
  EXPECT_NE(run(call, {.power = 1}), all);
}

// With no other block than its own, a text falls into texts of one block each.
TEST_P(PrFlash, WithNoOtherBlockTextsFallApart) {
  float never[] = {0};
  const View none = dense_view(never, DType::kF32, {1});
  for (const int64_t block : {64, 50}) {
    test::SmallCall call(1, 2, 1, 200, 200, 16, 8);
    std::vector<int32_t> document;
    for (int64_t i = 0; i < 200; ++i) document.push_back(static_cast<int32_t>(i / block));
    Qkv in = call.in();
    in.documents = dense_view(document.data(), DType::kI32, {1, 200});
    Context context = this->context();
    softmax_attention(in, {.causal = true}, call.outputs(), context);
    const std::vector<float> apart = call.out;
    EXPECT_EQ(run(call, {.block = block}, none), apart) << block;
  }
}

// What is computed is what prflash_blocks() says, for sides that are and are not multiples of the kernel's blocks.
TEST_P(PrFlash, AttendsToTheBlocksThatAreDrawn) {
  for (const int64_t block : {64, 128, 33}) {
    test::SmallCall call = test::weights_call(1, 512, 512, 8);
    const PrFlashOptions options{.block = block, .power = 0.7, .seed = 5};
    const int64_t blocks = (512 + block - 1) / block;
    const std::vector<bool> drawn = prflash_blocks(blocks, {}, options);
    const std::vector<float> weights = run(call, options);
    for (int64_t i = 0; i < 512; ++i)
      for (int64_t j = 0; j < 512; ++j) {
        const bool sees = j <= i && drawn[static_cast<size_t>(i / block * blocks + j / block)];
        ASSERT_EQ(weights[static_cast<size_t>(i * 512 + j)] > 0, sees) << block << ": " << i << ", " << j;
      }
  }
}

// A row of the last query alone draws what the whole text draws.
TEST_P(PrFlash, OneTokenAtATimeDrawsTheSame) {
  test::SmallCall call(1, 2, 1, 400, 400, 16, 16);
  const PrFlashOptions options{.power = 0.5, .seed = 3};
  const std::vector<float> whole = run(call, options);
  std::vector<float> last(2 * 16, NAN);
  Qkv in = call.in();
  in.q = dense_view(call.q.data() + 399 * 16, DType::kF32, {1, 2, 1, 16});
  in.q.stride = call.in().q.stride;
  Context context = this->context();
  prflash_attention(in, {}, options, {dense_view(last.data(), DType::kF32, {1, 2, 1, 16})}, context);
  for (size_t h = 0; h < 2; ++h)
    for (size_t c = 0; c < 16; ++c) EXPECT_EQ(last[h * 16 + c], whole[(h * 400 + 399) * 16 + c]);
}

// Shares of blocks by distance: within five deviations of their probability.
TEST(PrFlashBlocks, TakePartWithTheirProbability) {
  constexpr int64_t kBlocks = 600;
  float given[] = {0, 0.9f, 0.25f, 0.04f};
  const View probability = dense_view(given, DType::kF32, {4});
  for (const bool power : {true, false})
    for (const int64_t seed : {int64_t{0}, int64_t{1}, int64_t{1} << 40}) {
      const std::vector<bool> drawn =
          prflash_blocks(kBlocks, power ? View{} : probability, {.power = 1.5, .seed = seed});
      for (int64_t n = 1; n < 40; ++n) {
        int64_t count = 0;
        for (int64_t i = n; i < kBlocks; ++i) count += drawn[static_cast<size_t>(i * kBlocks + i - n)];
        const double p = power ? std::pow(1.0 + static_cast<double>(n), -1.5)
                               : static_cast<double>(given[std::min<int64_t>(n, 3)]),
                     trials = static_cast<double>(kBlocks - n);
        EXPECT_NEAR(static_cast<double>(count) / trials, p, 5 * std::sqrt(p * (1 - p) / trials)) << n << ", " << seed;
      }
      for (int64_t i = 0; i < kBlocks; ++i) {
        EXPECT_TRUE(drawn[static_cast<size_t>(i * kBlocks + i)]);
        for (int64_t j = i + 1; j < kBlocks; ++j) ASSERT_FALSE(drawn[static_cast<size_t>(i * kBlocks + j)]);
      }
    }
  EXPECT_NE(prflash_blocks(50, {}, {.seed = 1}), prflash_blocks(50, {}, {.seed = 2}));
  EXPECT_NE(prflash_blocks(50, {}, {.seed = 1}), prflash_blocks(50, {}, {.seed = 1 + (int64_t{1} << 32)}));
}

TEST(PrFlashRefuses, WhatHasNoMeaning) {
  test::SmallCall call(1, 1, 1, 2, 3, 8, 8);
  Context context(1);
  float given[] = {1, 1.5f};
  auto attend = [&](const View& probability, const PrFlashOptions& options) {
    prflash_attention(call.in(), probability, options, call.outputs(), context);
  };
  EXPECT_NO_THROW(attend(dense_view(given, DType::kF32, {1}), {}));
  EXPECT_THROW(attend(dense_view(given, DType::kF32, {2}), {}), Error);
  EXPECT_THROW(attend(dense_view(given, DType::kF32, {0}), {}), Error);
  EXPECT_THROW(attend({}, {.block = 0}), Error);
  EXPECT_THROW(attend({}, {.power = -1}), Error);
  EXPECT_THROW(attend({}, {.power = NAN}), Error);
  EXPECT_THROW(attend({}, {.seed = -1}), Error);
}

ATTEND_EACH_ISA(PrFlash);

}  // namespace
}  // namespace attend
