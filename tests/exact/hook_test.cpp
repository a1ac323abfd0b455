#include "attend/simd/hook.h"

#include <atomic>
#include <cmath>
#include <limits>

#include "exact/call.h"

namespace attend {
namespace {

class Hooks : public testing::TestWithParam<Isa> {};

TEST_P(Hooks, ALambdaEqualsTheSameBias) {
  test::SmallCall call(2, 4, 2, 70, 1100, 16, 24);
  const float slopes[] = {0.5f, 0.25f, 0.125f, 0.0625f};
  auto alibi = [&](float s, int, int head, int i, int j) { return s + slopes[head] * static_cast<float>(j - i); };
  const Hook hook = make_hook(alibi);
  for (const SoftmaxOptions& options : {SoftmaxOptions{.causal = true}, {.window = 300, .sinks = 3}}) {
    Context context = test::context_for(GetParam(), 2);
    call.run(options, context, {.score = &hook});
    const std::vector<float> hooked = call.out;

    std::vector<float> bias(static_cast<size_t>(4 * 70 * 1100));
    for (int h = 0; h < 4; ++h)
      for (int i = 0; i < 70; ++i)
        for (int j = 0; j < 1100; ++j)
          bias[static_cast<size_t>((h * 70 + i) * 1100 + j)] = slopes[h] * static_cast<float>(j - (i + 1030));
    Qkv in = call.in();
    in.bias = dense_view(bias.data(), DType::kF32, {1, 4, 70, 1100});
    softmax_attention(in, options, call.outputs(), context);
    EXPECT_EQ(hooked, call.out) << "options with window " << options.window;
  }
}

TEST_P(Hooks, MinusInfinityHidesEvenWhatIsNotFinite) {
  test::SmallCall call(1, 1, 1, 5, 40, 8, 8);
  for (int c = 0; c < 8; ++c) call.v[static_cast<size_t>(3 * 8 + c)] = NAN;
  auto even = [](float s, int, int, int, int j) { return j % 2 == 0 ? s : -std::numeric_limits<float>::infinity(); };
  const Hook hook = make_hook(even);
  Context context = test::context_for(GetParam());
  call.run({}, context, {.score = &hook});
  for (float x : call.out) EXPECT_FALSE(std::isnan(x));
  auto odd = [](float s, int, int, int, int j) { return j % 2 == 1 ? s : -std::numeric_limits<float>::infinity(); };
  const Hook other = make_hook(odd);
  call.run({}, context, {.score = &other});
  for (float x : call.out) EXPECT_TRUE(std::isnan(x));
}

TEST_P(Hooks, SeesPositionsHeadsAndBatches) {
  test::SmallCall call(2, 4, 2, 3, 30, 8, 8);
  std::atomic<int> wrong{0}, batches{0}, heads{0};
  auto look = [&](float s, int batch, int head, int i, int j) {
    if (i < 27 || i > 29 || j < 0 || j > 29 || batch > 1 || head > 3) ++wrong;
    batches |= 1 << batch;
    heads |= 1 << head;
    return s;
  };
  const Hook hook = make_hook(look);
  Context context = test::context_for(GetParam());
  call.run({.causal = true}, context, {.score = &hook});
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(batches, 3);
  EXPECT_EQ(heads, 15);
}

// The kernel of the instruction set that was asked for runs, and no other: only its pointer is called.
TEST_P(Hooks, TheForcedInstructionSetRuns) {
  test::SmallCall call(1, 1, 1, 3, 30, 8, 8);
  static int called;
  called = 0;
  Hook hook;
  hook.run.fill([](void*, Tile&) { called -= 1000; });
  auto count = [](void*, Tile&) { ++called; };
  hook.run[static_cast<int>(GetParam())] = count;
  // One attention kernel serves both: products are what the second adds.
  if (GetParam() == Isa::kAvx512Vnni) hook.run[static_cast<int>(Isa::kAvx512)] = count;
  if (GetParam() == Isa::kAmx) hook.run[static_cast<int>(Isa::kAvx512Bf16)] = count;
  if (GetParam() == Isa::kNeonDot) hook.run[static_cast<int>(Isa::kNeon)] = count;
  Context context = test::context_for(GetParam());
  call.run({}, context, {.score = &hook});
  EXPECT_GT(called, 0);
}

INSTANTIATE_TEST_SUITE_P(Usable, Hooks, testing::ValuesIn(test::usable_isas()),
                         [](const auto& usable) { return std::string(name_of(usable.param)); });

}  // namespace
}  // namespace attend
