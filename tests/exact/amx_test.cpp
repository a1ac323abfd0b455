// Attention on AMX beside AVX512_BF16's: what tiles do not multiply has the same bits, what they do the same bounds.
#include <algorithm>
#include <bit>
#include <cmath>

#include "exact/call.h"

namespace attend {
namespace {

const IsaInfo& amx() {
  return isa_list()[static_cast<size_t>(Isa::kAmx)];
}

class Amx : public testing::Test {
 protected:
  void SetUp() override {
    if (!amx().usable) GTEST_SKIP() << amx().why_not;
  }

  static test::SmallCall run(test::SmallCall call, const SoftmaxOptions& options, Isa isa, int threads = 1) {
    Context context = test::context_for(isa, threads);
    call.run(options, context);
    return call;
  }
};

TEST_F(Amx, WithoutTilesTheBitsAreThoseOfBf16DotProducts) {
  const test::SmallCall call(1, 4, 2, 37, 600, 40, 48);
  for (const Compute compute : {Compute::kF32, Compute::kFp8, Compute::kFp8Hadamard}) {
    const SoftmaxOptions options{.causal = true, .compute = compute};
    const test::SmallCall tiles = run(call, options, Isa::kAmx), dots = run(call, options, Isa::kAvx512Bf16);
    EXPECT_EQ(tiles.out, dots.out) << name_of(compute);
    EXPECT_EQ(tiles.lse, dots.lse) << name_of(compute);
  }
}

// Sums of integers are exact: int8 is the same on tiles, whole and in part, as in dot products.
TEST_F(Amx, Int8HasTheBitsOfDotProducts) {
  for (const Compute compute : {Compute::kInt8, Compute::kInt8Hadamard})
    for (const int64_t width : {1, 7, 40, 64, 80, 128, 256})
      for (const int64_t queries : {1, 7, 17, 70}) {
        const test::SmallCall call(1, 4, 2, queries, 700, width, width / 2 + 9);
        const SoftmaxOptions options{.causal = true, .window = width == 80 ? 300 : 0, .compute = compute};
        const test::SmallCall tiles = run(call, options, Isa::kAmx, 2), dots = run(call, options, Isa::kAvx512Bf16);
        ASSERT_EQ(tiles.out, dots.out) << name_of(compute) << ", width " << width << ", queries " << queries;
        ASSERT_EQ(tiles.lse, dots.lse) << name_of(compute) << ", width " << width << ", queries " << queries;
      }
}

// Rows that see parts of blocks, under a mask and a hook; values that are not finite reach those alone that see them.
TEST_F(Amx, Int8HasTheBitsOfDotProductsWithMasksHooksAndBadValues) {
  test::SmallCall call(1, 2, 1, 70, 600, 72, 48);
  call.v[static_cast<size_t>(300 * 48 + 5)] = NAN, call.k[static_cast<size_t>(580 * 72)] = INFINITY;
  auto visible = [](int, int head, int i, int j) { return (i + 3 * j + head) % 5 != 0 && j / 40 % 4 != i / 9 % 4; };
  auto falls = [](float s, int, int head, int i, int j) {
    return s - 0.01f * static_cast<float>((head + 1) * (i - j));
  };
  Context building(1);
  const BlockMask mask = block_mask(visible, {1, 2, 600, 600}, building);
  const Hook hook = make_hook(falls);
  auto bits = [](const std::vector<float>& x) {
    std::vector<uint32_t> to;
    for (const float e : x) to.push_back(std::isnan(e) ? 0x7fc00000u : std::bit_cast<uint32_t>(e));
    return to;
  };
  for (const Compute compute : {Compute::kInt8, Compute::kInt8Hadamard}) {
    auto run_on = [&](Isa isa) {
      test::SmallCall to = call;
      Context context = test::context_for(isa);
      to.run({.causal = true, .compute = compute}, context, {.score = &hook, .mask = &mask});
      return to;
    };
    const test::SmallCall tiles = run_on(Isa::kAmx), dots = run_on(Isa::kAvx512Bf16);
    EXPECT_EQ(bits(tiles.out), bits(dots.out)) << name_of(compute);
    EXPECT_EQ(bits(tiles.lse), bits(dots.lse)) << name_of(compute);
    EXPECT_TRUE(std::any_of(tiles.out.begin(), tiles.out.end(), [](float x) { return std::isnan(x); }));
    EXPECT_TRUE(std::any_of(tiles.out.begin(), tiles.out.end(), [](float x) { return std::isfinite(x); }));
  }
}

// Scores of int8-qk are integers' too, smoothed or not; lse is theirs.
TEST_F(Amx, Int8QkHasTheScoresOfDotProducts) {
  for (const int64_t width : {7, 40, 64, 128})
    for (const int64_t queries : {1, 17, 200}) {
      test::SmallCall call(1, 4, 2, queries, 700, width, 40);
      for (size_t i = 0; i < call.k.size(); i += 5) call.k[i] += 4;
      const SoftmaxOptions options{.causal = true, .compute = Compute::kInt8Qk};
      const test::SmallCall tiles = run(call, options, Isa::kAmx, 2), dots = run(call, options, Isa::kAvx512Bf16);
      ASSERT_EQ(tiles.lse, dots.lse) << "width " << width << ", queries " << queries;
    }
}

// Operands are rounded alike, so both differ by the rounding of f32 sums alone; weights may also round to either side
// where scores differ: half a unit in the last of 8 bits of a value, for each key at most its weight of the whole.
TEST_F(Amx, TilesAndDotProductsAgree) {
  for (const Compute compute : {Compute::kBF16, Compute::kInt8Qk})
    for (const int64_t width : {1, 16, 33, 64, 80, 128, 256}) {
      const test::SmallCall call(1, 4, 2, 70, 700, width, width);
      float largest = 0;
      for (const float x : call.v) largest = std::max(largest, std::abs(x));
      const SoftmaxOptions options{.causal = true, .compute = compute};
      const test::SmallCall tiles = run(call, options, Isa::kAmx, 2), dots = run(call, options, Isa::kAvx512Bf16);
      for (size_t i = 0; i < tiles.out.size(); ++i)
        ASSERT_NEAR(tiles.out[i], dots.out[i], largest * 0x1p-8) << "width " << width << ", element " << i;
      for (size_t i = 0; i < tiles.lse.size(); ++i) ASSERT_NEAR(tiles.lse[i], dots.lse[i], 1e-4) << "width " << width;
    }
}

// A row alone, in tiles of one row, is the row among 70.
TEST_F(Amx, ARowDoesNotDependOnTheRowsBesideIt) {
  const int64_t queries = 70, width = 48;
  const test::SmallCall call(1, 1, 1, queries, 530, width, width);
  for (const Compute compute : {Compute::kBF16, Compute::kInt8, Compute::kInt8Qk}) {
    const SoftmaxOptions options{.causal = true, .compute = compute};
    const test::SmallCall all = run(call, options, Isa::kAmx);
    for (int64_t i = 0; i < queries; ++i) {
      test::SmallCall one(1, 1, 1, 1, 530 - (queries - 1 - i), width, width);
      one.q.assign(call.q.begin() + i * width, call.q.begin() + (i + 1) * width);
      one.k = call.k, one.v = call.v;
      one = run(one, options, Isa::kAmx);
      EXPECT_EQ(one.out, std::vector<float>(all.out.begin() + i * width, all.out.begin() + (i + 1) * width))
          << name_of(compute) << ", row " << i;
    }
  }
}

}  // namespace
}  // namespace attend
