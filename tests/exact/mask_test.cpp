// Visibility rules as pictures: rows are queries, columns are keys, x is a key that the row sees.
#include <string>

#include "attend/tensor/error.h"
#include "exact/call.h"

namespace attend {
namespace {

// With values that are rows of the identity, the output is the weights.
std::vector<std::string> seen(const SoftmaxOptions& options, int64_t tq, int64_t tk,
                              std::vector<int32_t> documents = {}) {
  test::SmallCall call(1, 1, 1, tq, tk, 8, tk);
  for (int64_t j = 0; j < tk; ++j)
    for (int64_t c = 0; c < tk; ++c) call.v[static_cast<size_t>(j * tk + c)] = j == c ? 1.0f : 0.0f;
  Qkv in = call.in();
  if (!documents.empty())
    in.documents = dense_view(documents.data(), DType::kI32, {1, static_cast<int64_t>(documents.size())});
  Context context(1);
  softmax_attention(in, options, call.outputs(), context);
  std::vector<std::string> rows;
  for (int64_t i = 0; i < tq; ++i) {
    rows.emplace_back();
    for (int64_t j = 0; j < tk; ++j) rows.back() += call.out[static_cast<size_t>(i * tk + j)] > 0 ? 'x' : '.';
  }
  return rows;
}

using Rows = std::vector<std::string>;

TEST(Mask, Causal) {
  EXPECT_EQ(seen({.causal = true}, 4, 4), (Rows{"x...", "xx..", "xxx.", "xxxx"}));
}

TEST(Mask, TheLastQuerySitsOnTheLastKey) {
  EXPECT_EQ(seen({.causal = true}, 2, 5), (Rows{"xxxx.", "xxxxx"}));
  EXPECT_EQ(seen({.causal = true}, 5, 3), (Rows{"...", "...", "x..", "xx.", "xxx"}));
}

// A query before the first key has a negative position; only a causal rule makes it blind.
TEST(Mask, MoreQueriesThanKeysWithoutCausal) {
  EXPECT_EQ(seen({}, 4, 2), (Rows{"xx", "xx", "xx", "xx"}));
  EXPECT_EQ(seen({.window = 1}, 4, 2), (Rows{"xx", "xx", "xx", ".x"}));
  EXPECT_EQ(seen({.causal = true, .prefix = 1}, 4, 2), (Rows{"x.", "x.", "x.", "xx"}));
}

TEST(Mask, Full) {
  EXPECT_EQ(seen({}, 2, 3), (Rows{"xxx", "xxx"}));
}

TEST(Mask, WindowCountsTheQuerysOwnToken) {
  EXPECT_EQ(seen({.causal = true, .window = 1}, 3, 3), (Rows{"x..", ".x.", "..x"}));
  EXPECT_EQ(seen({.causal = true, .window = 2}, 4, 4), (Rows{"x...", "xx..", ".xx.", "..xx"}));
}

TEST(Mask, WindowWithoutCausalIsUnlimitedAhead) {
  EXPECT_EQ(seen({.window = 2}, 4, 4), (Rows{"xxxx", "xxxx", ".xxx", "..xx"}));
}

TEST(Mask, SinksStayVisibleBesideAWindow) {
  EXPECT_EQ(seen({.causal = true, .window = 2, .sinks = 1}, 6, 6),
            (Rows{"x.....", "xx....", "xxx...", "x.xx..", "x..xx.", "x...xx"}));
}

TEST(Mask, SinksAloneChangeNothing) {
  EXPECT_EQ(seen({.causal = true, .sinks = 2}, 3, 3), (Rows{"x..", "xx.", "xxx"}));
}

TEST(Mask, PrefixIsSeenByAll) {
  EXPECT_EQ(seen({.causal = true, .prefix = 3}, 5, 5), (Rows{"xxx..", "xxx..", "xxx..", "xxxx.", "xxxxx"}));
  EXPECT_EQ(seen({.causal = true, .window = 1, .prefix = 2}, 4, 4), (Rows{"xx..", "xx..", "xxx.", "xx.x"}));
}

TEST(Mask, DocumentsSeeOnlyThemselves) {
  EXPECT_EQ(seen({.causal = true}, 5, 5, {0, 0, 3, 3, 3}), (Rows{"x....", "xx...", "..x..", "..xx.", "..xxx"}));
  EXPECT_EQ(seen({}, 4, 4, {1, 1, 2, 2}), (Rows{"xx..", "xx..", "..xx", "..xx"}));
  EXPECT_EQ(seen({.causal = true, .window = 2, .sinks = 1}, 4, 4, {0, 0, 0, 1}),
            (Rows{"x...", "xx..", "xxx.", "...x"}));
}

TEST(Mask, DocumentsMustNotDecrease) {
  EXPECT_THROW(seen({}, 3, 3, {0, 1, 0}), Error);
  EXPECT_THROW(seen({}, 3, 3, {0, 1}), Error);
}

}  // namespace
}  // namespace attend
