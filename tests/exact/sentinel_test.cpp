// Limits of attention over sentinel tokens, and a stream whose spans are dropped once they are compressed.
#include "attend/exact/sentinel.h"

#include "exact/call.h"
#include "support/expect_error.h"

namespace attend {
namespace {

using test::SmallCall;

// Spans of 20 tokens, each closed by 2 sentinels.
std::vector<int32_t> some_spans(int64_t length) {
  std::vector<int32_t> spans;
  for (int64_t p = 0; p < length; ++p) {
    const int32_t span = static_cast<int32_t>(p / 22 + 1);
    spans.push_back(p % 22 < 20 ? span : -span);
  }
  return spans;
}

TEST(Sentinel, WithoutSpansIsCausalAttention) {
  SmallCall call(1, 4, 2, 130, 130, 32, 16), plain = call;
  Context context(2);
  std::vector<int32_t> spans(130, 0);
  const View view = dense_view(spans.data(), DType::kI32, {1, 130});
  plain.run({.causal = true}, context);
  sentinel_attention(call.in(), view, {}, call.outputs(), context);
  EXPECT_EQ(call.out, plain.out);
  std::fill(spans.begin(), spans.end(), 3);  // a span that nothing closes
  sentinel_attention(call.in(), view, {}, call.outputs(), context);
  EXPECT_EQ(call.out, plain.out);
}

// The last token sees the sentinels of what came before and its own span: the same bits as over these keys alone.
TEST(Sentinel, WhatIsCompressedMayBeDropped) {
  constexpr int64_t kLength = 22 * 30 + 7;
  SmallCall call(1, 2, 1, 1, kLength, 32, 16);
  Context context(1);
  std::vector<int32_t> spans = some_spans(kLength);
  sentinel_attention(call.in(), dense_view(spans.data(), DType::kI32, {1, kLength}), {}, call.outputs(), context);
  const std::vector<float> wanted = call.out;

  std::vector<float> k, v;
  std::vector<int32_t> positions;
  for (int64_t p = 0; p < kLength; ++p) {
    if (spans[static_cast<size_t>(p)] > 0 && p < 22 * 30) continue;
    k.insert(k.end(), call.k.begin() + p * 32, call.k.begin() + (p + 1) * 32);
    v.insert(v.end(), call.v.begin() + p * 16, call.v.begin() + (p + 1) * 16);
    positions.push_back(static_cast<int32_t>(p));
  }
  const KeyRun run{.k = k.data(),
                   .v = v.data(),
                   .k_stride = 32,
                   .v_stride = 16,
                   .first_slot = 0,
                   .count = static_cast<int64_t>(positions.size())};
  KeyView keys;
  keys.runs = {&run, 1};
  keys.position = positions;
  EXPECT_EQ(positions.size(), 2u * 30 + 7);
  Qkv in{.q = call.in().q};
  in.keys = {&keys, 1};
  in.dv = 16;
  softmax_attention(in, {.causal = true}, call.outputs(), context);
  EXPECT_EQ(call.out, wanted);
}

TEST(Sentinel, RefusesOtherSpans) {
  SmallCall call(2, 2, 1, 3, 10, 16, 16);
  Context context(1);
  std::vector<int32_t> spans(20, 0);
  for (const View& view :
       {View{}, dense_view(spans.data(), DType::kI32, {2, 9}), dense_view(spans.data(), DType::kI32, {1, 20}),
        dense_view(spans.data(), DType::kF32, {2, 10})})
    test::expect_error(ErrorKind::kArgument, "[sentinel] spans",
                       [&] { sentinel_attention(call.in(), view, {}, call.outputs(), context); });
}

}  // namespace
}  // namespace attend
