#include <cmath>

#include "attend/tensor/bound.h"
#include "attend/tensor/error.h"
#include "exact/call.h"

namespace attend {
namespace {

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(double{a[i]} - double{b[i]}));
  return worst;
}

constexpr double kTolerance = 2e-5;  // far above rounding of these sizes, far below any mistake

TEST(Partial, CutAt512AndMergedInOrderGivesTheSameBits) {
  for (Isa isa : test::usable_isas()) {
    test::SmallCall call(2, 4, 2, 9, 1700, 24, 40);
    Context context = test::context_for(isa, 2);
    const SoftmaxOptions options{.causal = true};
    call.run(options, context);
    const auto out = call.out, lse = call.lse;
    Partial whole(2, 4, 9, 40);
    for (int64_t begin = 0; begin < 1700; begin += 512)
      merge(whole, softmax_partial(call.in(), options, {begin, begin + 512}, context), context);
    finish(whole, {}, call.outputs(), context);
    EXPECT_EQ(out, call.out) << name_of(isa);
    EXPECT_EQ(lse, call.lse) << name_of(isa);
  }
}

TEST(Partial, AnyCutAndAnyGroupingGiveTheResultWithinRounding) {
  test::SmallCall call(1, 2, 1, 5, 900, 16, 16);
  Context context(1);
  call.run({}, context);
  const auto out = call.out;
  auto part = [&](int64_t begin, int64_t end) { return softmax_partial(call.in(), {}, {begin, end}, context); };
  Partial left = part(0, 77), middle = part(77, 600), right = part(600, kNoEnd);
  merge(middle, right, context);
  merge(left, middle, context);
  finish(left, {}, call.outputs(), context);
  EXPECT_LT(largest_difference(out, call.out), kTolerance);
}

TEST(Partial, TheEmptyPartialIsTheIdentity) {
  test::SmallCall call(1, 2, 1, 5, 60, 16, 16);
  Context context(1);
  const Partial some = softmax_partial(call.in(), {}, {0, 60}, context);
  Partial left(1, 2, 5, 16);
  merge(left, some, context);
  finish(some, {}, call.outputs(), context);
  const auto out = call.out;
  finish(left, {}, call.outputs(), context);
  EXPECT_EQ(out, call.out);
  Partial right = softmax_partial(call.in(), {}, {0, 60}, context);
  merge(right, Partial(1, 2, 5, 16), context);
  finish(right, {}, call.outputs(), context);
  EXPECT_EQ(out, call.out);
}

TEST(Partial, NothingSeenIsZeroAndMinusInfinity) {
  test::SmallCall call(1, 2, 1, 5, 60, 16, 16);
  Context context(1);
  finish(Partial(1, 2, 5, 16), {}, call.outputs(), context);
  for (float x : call.out) EXPECT_EQ(x, 0);
  for (float x : call.lse) EXPECT_EQ(x, -INFINITY);
}

TEST(Partial, SinkLogitsJoinOnceAtTheEnd) {
  test::SmallCall call(1, 2, 1, 5, 1100, 16, 16);
  Context context(1);
  float sinks[] = {3.0f, -2.0f};
  Qkv in = call.in();
  in.sink_logits = dense_view(sinks, DType::kF32, {2});
  softmax_attention(in, {}, call.outputs(), context);
  const auto out = call.out, lse = call.lse;
  Partial whole(1, 2, 5, 16);
  for (int64_t begin = 0; begin < 1100; begin += 512)
    merge(whole, softmax_partial(in, {}, {begin, begin + 512}, context), context);
  finish(whole, in.sink_logits, call.outputs(), context);
  EXPECT_EQ(out, call.out);
  EXPECT_EQ(lse, call.lse);
  // A sink takes weight e^sink of the denominator and adds no value.
  call.run({}, context);
  for (size_t row = 0; row < 10; ++row) {
    const double without = call.lse[row], with = std::log(std::exp(without) + std::exp(sinks[row / 5]));
    EXPECT_NEAR(lse[row], with, 1e-5);
    for (size_t c = 0; c < 16; ++c)
      EXPECT_NEAR(out[row * 16 + c], call.out[row * 16 + c] * std::exp(without - with), 1e-5);
  }
}

TEST(Partial, ShapesMustAgree) {
  Context context(1);
  Partial a(1, 2, 5, 16);
  EXPECT_THROW(merge(a, Partial(1, 2, 5, 8), context), Error);
  EXPECT_THROW(merge(a, Partial(1, 2, 4, 16), context), Error);
  EXPECT_THROW(Partial(1, 2, 5, 0), Error);
  EXPECT_THROW(Partial(1, -2, 5, 16), Error);
  test::SmallCall call(1, 2, 1, 5, 60, 16, 16);
  EXPECT_THROW(softmax_partial(call.in(), {}, {5, 2}, context), Error);
}

TEST(Softmax, StopsWhenAsked) {
  test::SmallCall call(1, 2, 1, 5, 60, 16, 16);
  std::stop_source source;
  source.request_stop();
  Context context(2);
  context.stop = source.get_token();
  EXPECT_THROW(call.run({}, context), Error);
}

TEST(Softmax, AnUnusableInstructionSetIsAnError) {
  test::SmallCall call(1, 2, 1, 5, 60, 16, 16);
  for (const IsaInfo& info : isa_list()) {
    if (info.usable) continue;
    Context context = test::context_for(info.isa);
    EXPECT_THROW(call.run({}, context), Error) << name_of(info.isa);
  }
}

}  // namespace
}  // namespace attend
