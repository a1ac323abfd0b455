// Attention on AMX beside AVX512_BF16's: what tiles do not multiply has the same bits, what they do the same bounds.
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
  for (const Compute compute : {Compute::kF32, Compute::kInt8, Compute::kFp8}) {
    const SoftmaxOptions options{.causal = true, .compute = compute};
    const test::SmallCall tiles = run(call, options, Isa::kAmx), dots = run(call, options, Isa::kAvx512Bf16);
    EXPECT_EQ(tiles.out, dots.out) << name_of(compute);
    EXPECT_EQ(tiles.lse, dots.lse) << name_of(compute);
  }
}

// Operands are rounded alike, so both differ by the rounding of f32 sums alone; weights may also round to either side
// where scores differ: half a unit in the last of 8 bits of a value, for each key at most its weight of the whole.
TEST_F(Amx, TilesAndDotProductsAgree) {
  for (const int64_t width : {1, 16, 33, 64, 80, 128, 256}) {
    const test::SmallCall call(1, 4, 2, 70, 700, width, width);
    float largest = 0;
    for (const float x : call.v) largest = std::max(largest, std::abs(x));
    const SoftmaxOptions options{.causal = true, .compute = Compute::kBF16};
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
  const SoftmaxOptions options{.causal = true, .compute = Compute::kBF16};
  const test::SmallCall all = run(call, options, Isa::kAmx);
  for (int64_t i = 0; i < queries; ++i) {
    test::SmallCall one(1, 1, 1, 1, 530 - (queries - 1 - i), width, width);
    one.q.assign(call.q.begin() + i * width, call.q.begin() + (i + 1) * width);
    one.k = call.k, one.v = call.v;
    one = run(one, options, Isa::kAmx);
    EXPECT_EQ(one.out, std::vector<float>(all.out.begin() + i * width, all.out.begin() + (i + 1) * width)) << i;
  }
}

}  // namespace
}  // namespace attend
