// Every mask of the FlexAttention collection (attention-gym), as a lambda, beside a picture of the pairs that it lets
// see: a row a query, a column a key, # where seen. Each is also run against a bias that hides the same pairs.
#include "attend/exact/block_mask.h"

#include <algorithm>
#include <cmath>

#include "attend/tensor/error.h"
#include "exact/call.h"

namespace attend {
namespace {

template <class F>
std::string picture(const F& f, int queries, int keys, int head = 0, int batch = 0) {
  Context context(1);
  const MaskSizes sizes{batch + 1, head + 1, queries, keys};
  const BlockMask mask = block_mask(f, sizes, context);
  std::string text = "\n";
  for (int i = 0; i < queries; ++i) {
    for (int j = 0; j < keys; ++j) text += mask.row(batch, head, i, 0) >> j & 1 ? '#' : '.';
    text += "\n";
  }
  return text;
}

// The mask, alone and with an option beside it, equals a bias of -inf, to the bit, over several splits.
template <class F>
void expect_like_bias(const F& f, int tokens, int heads = 1, int batch = 1) {
  for (Isa isa : test::usable_isas()) {
    test::SmallCall call(batch, heads, 1, tokens, tokens, 16, 8);
    Context context = test::context_for(isa, 2);
    const BlockMask mask = block_mask(f, {batch, heads, tokens, tokens}, context);
    std::vector<float> bias(static_cast<size_t>(batch * heads * tokens * tokens));
    size_t at = 0;
    for (int b = 0; b < batch; ++b)
      for (int h = 0; h < heads; ++h)
        for (int i = 0; i < tokens; ++i)
          for (int j = 0; j < tokens; ++j) bias[at++] = f(b, h, i, j) ? 0 : -INFINITY;
    Qkv in = call.in();
    in.bias = dense_view(bias.data(), DType::kF32, {batch, heads, tokens, tokens});
    for (const SoftmaxOptions& options : {SoftmaxOptions{}, SoftmaxOptions{.causal = true, .window = 70, .sinks = 2}}) {
      softmax_attention(in, options, call.outputs(), context);
      const auto out = call.out, lse = call.lse;
      call.run(options, context, {.mask = &mask});
      EXPECT_EQ(out, call.out);
      EXPECT_EQ(lse, call.lse);
    }
  }
}

TEST(Mask, Causal) {
  auto causal = [](int, int, int i, int j) { return j <= i; };
  EXPECT_EQ(picture(causal, 4, 4), R"(
#...
##..
###.
####
)");
  expect_like_bias(causal, 650);
  // The lambda gives the bits of the option.
  test::SmallCall call(1, 4, 2, 700, 700, 32, 32);
  Context context(2);
  call.run({.causal = true}, context);
  const auto out = call.out;
  const BlockMask mask = block_mask(causal, {1, 1, 700, 700}, context);
  call.run({}, context, {.mask = &mask});
  EXPECT_EQ(out, call.out);
}

TEST(Mask, SlidingWindow) {
  auto window = [](int, int, int i, int j) { return j <= i && i - j < 3; };
  EXPECT_EQ(picture(window, 6, 6), R"(
#.....
##....
###...
.###..
..###.
...###
)");
  expect_like_bias(window, 130);
}

TEST(Mask, PrefixLanguageModel) {
  auto prefix = [](int, int, int i, int j) { return j < 3 || j <= i; };
  EXPECT_EQ(picture(prefix, 5, 5), R"(
###..
###..
###..
####.
#####
)");
  expect_like_bias(prefix, 130);
}

TEST(Mask, Documents) {
  static constexpr int kDocument[] = {0, 0, 0, 1, 1, 2};
  auto documents = [](int, int, int i, int j) { return kDocument[i] == kDocument[j] && j <= i; };
  EXPECT_EQ(picture(documents, 6, 6), R"(
#.....
##....
###...
...#..
...##.
.....#
)");
  expect_like_bias([](int, int, int i, int j) { return i / 97 == j / 97; }, 600);
}

TEST(Mask, Neighbourhood1D) {
  auto natten = [](int, int, int i, int j) {
    const int centre = std::clamp(i, 1, 5);  // 7 tokens, kernel 3
    return std::abs(centre - j) <= 1;
  };
  EXPECT_EQ(picture(natten, 7, 7), R"(
###....
###....
.###...
..###..
...###.
....###
....###
)");
  expect_like_bias([](int, int, int i, int j) { return std::abs(std::clamp(i, 5, 200) - j) <= 5; }, 206);
}

TEST(Mask, Neighbourhood2D) {
  // A canvas 3 high and 4 wide, kernel 3 x 3: the query's window moved inside the canvas.
  auto natten = [](int, int, int i, int j) {
    const int x = std::clamp(i / 4, 1, 1), y = std::clamp(i % 4, 1, 2);
    return std::abs(x - j / 4) <= 1 && std::abs(y - j % 4) <= 1;
  };
  EXPECT_EQ(picture(natten, 12, 12), R"(
###.###.###.
###.###.###.
.###.###.###
.###.###.###
###.###.###.
###.###.###.
.###.###.###
.###.###.###
###.###.###.
###.###.###.
.###.###.###
.###.###.###
)");
  expect_like_bias(
      [](int, int, int i, int j) {
        const int x = std::clamp(i / 20, 2, 17), y = std::clamp(i % 20, 2, 17);
        return std::abs(x - j / 20) <= 2 && std::abs(y - j % 20) <= 2;
      },
      400);
}

TEST(Mask, Neighbourhood3D) {
  // 2 x 3 x 3, kernel 2 x 1 x 3: planes are all seen, rows only one's own, columns three.
  auto natten = [](int, int, int i, int j) { return i / 3 % 3 == j / 3 % 3; };
  EXPECT_EQ(picture(natten, 3, 18), R"(
###......###......
###......###......
###......###......
)");
  expect_like_bias(
      [](int, int, int i, int j) {
        return std::abs(i / 49 - j / 49) <= 1 && std::abs(i / 7 % 7 - j / 7 % 7) <= 1 && std::abs(i % 7 - j % 7) <= 1;
      },
      343);
}

TEST(Mask, Dilated) {
  auto dilated = [](int, int, int i, int j) { return j <= i && i - j < 6 && (i - j) % 2 == 0; };
  EXPECT_EQ(picture(dilated, 7, 7), R"(
#......
.#.....
#.#....
.#.#...
#.#.#..
.#.#.#.
..#.#.#
)");
  expect_like_bias(dilated, 200);
}

TEST(Mask, SharedQuestion) {
  // One question (2 tokens) and three answers (2 each) that see it and themselves.
  auto shared = [](int, int, int i, int j) { return j <= i && (j < 2 || i / 2 == j / 2); };
  EXPECT_EQ(picture(shared, 8, 8), R"(
#.......
##......
###.....
####....
##..#...
##..##..
##....#.
##....##
)");
  expect_like_bias(shared, 150);
}

TEST(Mask, JaggedBatch) {
  // Sequences of lengths 2, 3 and 1 in one row of tokens, bidirectional.
  static constexpr int kOffsets[] = {0, 2, 5, 6};
  auto sequence = [](int t) { return static_cast<int>(std::upper_bound(kOffsets, kOffsets + 4, t) - kOffsets); };
  auto jagged = [&](int, int, int i, int j) { return sequence(i) == sequence(j); };
  EXPECT_EQ(picture(jagged, 6, 6), R"(
##....
##....
..###.
..###.
..###.
.....#
)");
}

TEST(Mask, Flamingo) {
  // Text tokens see the image before them: image k holds keys 2 k and 2 k + 1, and comes at token 3 k.
  auto flamingo = [](int, int, int i, int j) { return i / 3 == j / 2; };
  EXPECT_EQ(picture(flamingo, 6, 4), R"(
##..
##..
##..
..##
..##
..##
)");
  expect_like_bias(flamingo, 190);
}

TEST(Mask, OfABatchEntryAndHead) {
  auto own = [](int batch, int head, int i, int j) { return j <= i && i - j < 1 + batch + 2 * head; };
  EXPECT_EQ(picture(own, 4, 4, 0, 0), "\n#...\n.#..\n..#.\n...#\n");
  EXPECT_EQ(picture(own, 4, 4, 1, 0), "\n#...\n##..\n###.\n.###\n");
  EXPECT_EQ(picture(own, 4, 4, 0, 1), "\n#...\n##..\n.##.\n..##\n");
  expect_like_bias(own, 140, 3, 2);
}

TEST(BlockMask, KnowsFullPartialAndEmptyBlocks) {
  Context context(2);
  const BlockMask mask = block_mask([](int, int, int i, int j) { return j <= i; }, {1, 1, 200, 200}, context);
  EXPECT_EQ(mask.query_blocks(), 4);
  EXPECT_EQ(mask.block(0, 0, 1, 0), BlockMask::kFull);
  EXPECT_EQ(mask.block(0, 0, 0, 1), BlockMask::kEmpty);
  EXPECT_GE(mask.block(0, 0, 1, 1), 0);
  EXPECT_GE(mask.block(0, 0, 3, 3), 0);  // 8 of its 64 rows and columns exist
  EXPECT_DOUBLE_EQ(mask.density(), 10.0 / 16);
}

TEST(BlockMask, SaysWhatItDoesNotCover) {
  test::SmallCall call(1, 2, 1, 10, 20, 8, 8);
  Context context(1);
  const auto all = [](int, int, int, int) { return true; };
  for (const MaskSizes& sizes : {MaskSizes{1, 1, 19, 20}, {1, 1, 20, 19}, {2, 1, 20, 20}, {1, 3, 20, 20}}) {
    const BlockMask mask = block_mask(all, sizes, context);
    try {
      call.run({}, context, {.mask = &mask});
      ADD_FAILURE() << "is accepted";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("mask"), std::string::npos) << error.what();
    }
  }
  EXPECT_THROW(block_mask(all, {0, 1, 1, 1}, context), Error);
  EXPECT_THROW(block_mask(all, {1, 1, -1, 1}, context), Error);
}

// Keys as runs with gaps: the mask goes by position.
TEST(BlockMask, GoesByPosition) {
  for (Isa isa : test::usable_isas()) {
    test::SmallCall call(1, 2, 1, 5, 900, 16, 16);
    Context context = test::context_for(isa, 1);
    auto every_third = [](int, int, int i, int j) { return (i - j) % 3 != 1; };
    const BlockMask mask = block_mask(every_third, {1, 1, 900, 900}, context);
    auto dropped = [](int j) { return j % 5 == 2; };
    auto without = [&](int b, int h, int i, int j) { return every_third(b, h, i, j) && !dropped(j); };
    const BlockMask kept_only = block_mask(without, {1, 1, 900, 900}, context);
    call.run({}, context, {.mask = &kept_only});
    const auto out = call.out;
    std::vector<KeyRun> runs;
    std::vector<int32_t> positions;
    for (int32_t j = 0; j < 900; ++j) {
      if (dropped(j)) continue;
      runs.push_back(
          {call.k.data() + j * 16, call.v.data() + j * 16, 16, 16, static_cast<int64_t>(positions.size()), 1});
      positions.push_back(j);
    }
    const KeyView view{runs, positions};
    Qkv in{.q = call.in().q, .keys = {&view, 1}, .dv = 16};
    softmax_attention(in, {}, call.outputs(), context, {.mask = &mask});
    EXPECT_EQ(out, call.out) << name_of(isa);
  }
}

}  // namespace
}  // namespace attend
