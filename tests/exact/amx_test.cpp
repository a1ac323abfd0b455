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

// Weights are relative to a score of the first 64 keys of a split. Where others are far larger, to those.
TEST_F(Amx, ScoresMayGrowWithoutBoundAlongASplit) {
  for (const Compute compute : {Compute::kBF16, Compute::kInt8Qk, Compute::kInt8})
    for (const float growth : {0.01f, 0.1f, 1.0f, 10.0f}) {
      test::SmallCall call(1, 2, 1, 70, 700, 64, 64);
      for (int64_t j = 0; j < 700; ++j)
        for (int64_t c = 0; c < 64; ++c) {
          float& k = call.k[static_cast<size_t>(j * 64 + c)];
          k = to_f32(to_bf16((c == 0 ? growth * static_cast<float>(j) : 0.1f * k)));
        }
      for (size_t i = 0; i < call.q.size(); ++i) call.q[i] = to_f32(to_bf16(i % 64 == 0 ? 1.0f : call.q[i]));
      const SoftmaxOptions options{.causal = true, .compute = compute};
      test::SmallCall wanted = call;
      Context context = test::context_for(Isa::kAvx512);
      wanted.run({.causal = true}, context);
      const test::SmallCall got = run(call, options, Isa::kAmx, 2), dots = run(call, options, Isa::kAvx512Bf16);
      for (size_t i = 0; i < got.out.size(); ++i) {
        if (compute == Compute::kBF16) {
          ASSERT_NEAR(got.out[i], wanted.out[i], 0.03) << "growth " << growth << ", element " << i;
        }
        ASSERT_NEAR(got.out[i], dots.out[i], 0.03) << name_of(compute) << ", growth " << growth << ", element " << i;
      }
      for (size_t i = 0; i < got.lse.size(); ++i)
        ASSERT_NEAR(got.lse[i], dots.lse[i], 1e-4f * std::abs(dots.lse[i])) << name_of(compute) << ", row " << i;
    }
}

// Scores pass by where nothing but options and masks hides keys, else they take the strip: to the same bits.
TEST_F(Amx, TheWayOfScoresChangesNoBit) {
  for (const float growth : {0.0f, 0.5f}) {
    test::SmallCall call(1, 2, 1, 100, 1100, 64, 48);
    for (int64_t j = 0; j < 1100; ++j) call.k[static_cast<size_t>(j * 64)] += growth * static_cast<float>(j);
    for (size_t i = 0; i < call.q.size(); i += 64) call.q[i] = 2;
    Context building(1);
    const BlockMask mask =
        block_mask([](int, int, int i, int j) { return j <= i && j > i - 300; }, {1, 1, 1100, 1100}, building);
    auto same = [](float s, int, int, int, int) { return s; };
    const Hook hook = make_hook(same);
    for (const Compute compute : {Compute::kBF16, Compute::kInt8}) {
      const SoftmaxOptions options{.causal = true, .window = 300, .compute = compute};
      const test::SmallCall plain = run(call, options, Isa::kAmx);
      auto expect_same = [&](const SoftmaxOptions& with, const Variant& variant, const char* what) {
        test::SmallCall other = call;
        Context context = test::context_for(Isa::kAmx);
        other.run(with, context, variant);
        EXPECT_EQ(plain.out, other.out) << what << ", " << name_of(compute) << ", growth " << growth;
        EXPECT_EQ(plain.lse, other.lse) << what << ", " << name_of(compute) << ", growth " << growth;
      };
      expect_same({.compute = compute}, {.mask = &mask}, "mask");
      expect_same({.compute = compute}, {.score = &hook, .mask = &mask}, "mask and hook");
      expect_same({.causal = true, .window = 300, .softcap = 0, .compute = compute}, {.score = &hook}, "hook");
    }
  }
}

TEST_F(Amx, BadValuesReachOnlyRowsThatMasksAndHooksShowThemTo) {
  test::SmallCall call(1, 2, 1, 70, 600, 64, 48);
  auto seen = [](int head, int i, int j) { return (i + j + head) % 3 != 0; };
  Context context = test::context_for(Isa::kAmx);
  const BlockMask mask =
      block_mask([&](int, int head, int i, int j) { return seen(head, i, j); }, {1, 2, 600, 600}, context);
  auto hides = [&](float s, int, int head, int i, int j) { return seen(head, i, j) ? s : -INFINITY; };
  const Hook hook = make_hook(hides);
  auto out_of = [&](test::SmallCall with, const Variant& variant) {
    with.run({.compute = Compute::kBF16}, context, variant);
    return with.out;
  };
  test::SmallCall bad = call;
  bad.v[static_cast<size_t>(300 * 48 + 5)] = NAN;
  for (const Variant& variant : {Variant{.mask = &mask}, Variant{.score = &hook}}) {
    const std::vector<float> clean = out_of(call, variant), out = out_of(bad, variant);
    for (int h = 0; h < 2; ++h)
      for (int i = 0; i < 70; ++i)
        for (int c = 0; c < 48; ++c) {
          const size_t at = static_cast<size_t>((h * 70 + i) * 48 + c);
          if (c == 5 && seen(h, 530 + i, 300)) {
            EXPECT_TRUE(std::isnan(out[at])) << "head " << h << ", row " << i;
          } else {
            EXPECT_EQ(out[at], clean[at]) << "head " << h << ", row " << i << ", element " << c;
          }
        }
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
