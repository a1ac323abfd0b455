#include "attend/simd/product.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>

#include "attend/simd/isa.h"
#include "attend/tensor/bound.h"
#include "attend/tensor/error.h"
#include "simd/quant_samples.h"

namespace attend {
namespace {

using test::kAllTypes;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kGuard = 12345.0f;

std::vector<Isa> usable_isas() {
  std::vector<Isa> list;
  for (const IsaInfo& info : isa_list())
    if (info.usable) list.push_back(info.isa);
  return list;
}

std::vector<float> random_rows(int64_t t, int64_t k, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(t * k));
  for (float& v : x) v = normal(random);
  for (size_t i = 7; i < x.size(); i += 97) x[i] *= 40;  // outliers, as models have
  return x;
}

Context context_of(Isa isa, int threads) {
  Context context(threads);
  context.isa = isa;
  return context;
}

struct Case {
  WeightType type;
  ComputeMode mode;
  int64_t n, k;
  std::vector<uint8_t> blocks;
  std::vector<float> w, terms;
  PackedWeight packed;

  Case(WeightType type_, ComputeMode mode_, int64_t n_, int64_t k_, std::mt19937& random)
      : type(type_),
        mode(mode_),
        n(n_),
        k(k_),
        blocks(test::random_blocks(type, n, k, random)),
        w(static_cast<size_t>(n * k)) {
    dequantize(type, blocks.data(), n * k, w.data());
    terms = test::terms_of(type, blocks, w);
    Context context(2);
    packed = pack_weight(type, blocks.data(), n, k, mode, context);
  }

  // Against a plain loop in double, and guard values around and between rows.
  void expect_right(const std::vector<float>& x, int64_t t, Context& context) const {
    const int64_t stride = n + 3;
    std::vector<float> y(static_cast<size_t>(t * stride + 8), kGuard);
    for (int64_t r = 0; r < t; ++r)
      for (int64_t i = 0; i < n; ++i) y[static_cast<size_t>(4 + r * stride + i)] = kNaN;
    product(packed, x.data(), k, y.data() + 4, stride, t, context);
    double worst = 0;
    for (int64_t r = 0; r < t; ++r) {
      for (int64_t i = 0; i < n; ++i) {
        double exact = 0, magnitude = 0;
        for (int64_t c = 0; c < k; ++c) {
          const double term =
              static_cast<double>(x[static_cast<size_t>(r * k + c)]) * w[static_cast<size_t>(i * k + c)];
          exact += term;
          magnitude += std::fabs(term);
        }
        const size_t row = static_cast<size_t>(i * k), columns = static_cast<size_t>(k);
        const int64_t levels = activation_levels(packed.type);
        const double limit = levels
                                 ? bound::quantised_product({x.data() + r * k, columns}, {w.data() + row, columns},
                                                            {terms.data() + row, columns}, static_cast<double>(levels))
                                 : bound::product(k, magnitude);
        const double error = std::fabs(static_cast<double>(y[static_cast<size_t>(4 + r * stride + i)]) - exact);
        worst = std::max(worst, limit > 0 ? error / limit : error > 0 ? 1e30 : 0.0);
        if (!(error <= limit)) {
          ADD_FAILURE() << fmt::format("row {} output {}: error {} > bound {}, exact {}", r, i, error, limit, exact);
          return;
        }
      }
    }
    for (size_t i = 0; i < y.size(); ++i) {
      const int64_t column = (static_cast<int64_t>(i) - 4) % stride;
      const bool inside = i >= 4 && static_cast<int64_t>(i) < 4 + t * stride && column < n;
      if (!inside) {
        EXPECT_EQ(y[i], kGuard) << "guard " << i;
      }
    }
  }
};

class ProductTest : public testing::TestWithParam<WeightType> {
 protected:
  std::string describe(const Case& c, int64_t t, const Context& context) const {
    return fmt::format("seed {} {} {} n {} k {} t {} threads {} {}", seed_, format_of(c.type).name,
                       c.mode == ComputeMode::kF32 ? "f32" : "default", c.n, c.k, t, context.threads,
                       name_of(*context.isa));
  }
  const unsigned seed_ = std::random_device{}();
  std::mt19937 random_{seed_};
};

TEST_P(ProductTest, StaysWithinItsBound) {
  const int64_t block = format_of(GetParam()).block_elements;
  for (const ComputeMode mode : {ComputeMode::kDefault, ComputeMode::kF32}) {
    for (const int64_t n : {1, 15, 16, 17, 33, 97}) {
      for (const int64_t k : {std::max<int64_t>(block, 32), std::max<int64_t>(5 * block, 160), int64_t{768}}) {
        const Case c(GetParam(), mode, n, k, random_);
        for (const Isa isa : usable_isas()) {
          for (const int64_t t : {1, 2, 3, 5, 7, 13, 31}) {
            Context context = context_of(isa, t % 2 ? 1 : 2);
            SCOPED_TRACE(describe(c, t, context));
            c.expect_right(random_rows(t, k, random_), t, context);
            if (HasFailure()) return;
          }
        }
      }
    }
  }
}

// Tiles of AMX hold 16 rows, and 32 at a time; they take four blocks of 32 columns at once.
TEST_P(ProductTest, RowsAndBlocksThatFillNoTileHaveTheSameBits) {
  const int64_t n = 49, block = std::max<int64_t>(32, format_of(GetParam()).block_elements);
  for (const int64_t k : {block, 3 * block, 5 * block}) {
    const Case c(GetParam(), ComputeMode::kDefault, n, k, random_);
    const std::vector<float> x = random_rows(48, k, random_);
    std::vector<float> apart(static_cast<size_t>(48 * n));
    Context first = context_of(usable_isas().front(), 1);
    for (int64_t r = 0; r < 48; ++r) product(c.packed, x.data() + r * k, k, apart.data() + r * n, n, 1, first);
    for (const Isa isa : usable_isas())
      for (const int64_t rows : {15, 16, 17, 31, 32, 33, 48}) {
        Context context = context_of(isa, 1);
        SCOPED_TRACE(describe(c, rows, context));
        std::vector<float> y(static_cast<size_t>(rows * n), kNaN);
        product(c.packed, x.data(), k, y.data(), n, rows, context);
        ASSERT_EQ(std::memcmp(y.data(), apart.data(), y.size() * 4), 0);
      }
  }
}

TEST_P(ProductTest, OneRowHasTheBitsOfManyWhateverTheThreadsAndInstructionSet) {
  const int64_t n = 75, k = 768, t = 401;
  for (const ComputeMode mode : {ComputeMode::kDefault, ComputeMode::kF32}) {
    const Case c(GetParam(), mode, n, k, random_);
    const std::vector<float> x = random_rows(t, k, random_);
    std::vector<float> first(static_cast<size_t>(t * n));
    {
      Context context = context_of(usable_isas().front(), 1);
      for (int64_t r = 0; r < t; ++r) product(c.packed, x.data() + r * k, k, first.data() + r * n, n, 1, context);
    }
    for (const Isa isa : usable_isas()) {
      for (const int threads : {1, 2, 3}) {
        for (const int64_t rows : {t, int64_t{64}, int64_t{7}, int64_t{1}}) {
          if (rows < 64 && threads == 3) continue;  // many small steps of more threads than cores take long
          Context context = context_of(isa, threads);
          SCOPED_TRACE(describe(c, rows, context));
          std::vector<float> y(first.size(), kNaN);
          for (int64_t r = 0; r < t; r += rows)
            product(c.packed, x.data() + r * k, k, y.data() + r * n, n, std::min(rows, t - r), context);
          ASSERT_EQ(std::memcmp(y.data(), first.data(), y.size() * 4), 0);
        }
      }
    }
  }
}

// FNV-1a of results for inputs that are the same everywhere, recorded on x86-64: integer products are exact, every
// chain of multiply-adds has one order, so that machines agree too, not only the instruction sets of one.
TEST_P(ProductTest, TheBitsAreThoseOfEveryOtherMachine) {
  // In the order of WeightType.
  constexpr uint64_t kRecorded[] = {0xa93f00416215a676u, 0xd3f27814eb53f594u, 0xb689bb7da1460b09u, 0x378034d769f24933u,
                                    0xdcb7e415c9b9c929u, 0x59a05e68f7eedb05u, 0xf99b707e6c0692d6u, 0x68a62655a4aacc95u};
  std::mt19937 random(1);
  const int64_t n = 37, k = 768, t = 9;
  const Case c(GetParam(), ComputeMode::kDefault, n, k, random);
  std::vector<float> x(static_cast<size_t>(t * k));
  for (float& v : x) v = static_cast<float>(static_cast<int32_t>(random()) >> 8) * 0x1p-22f;
  for (int repeated = 0; repeated < 3; ++repeated) x.insert(x.end(), x.begin(), x.begin() + t * k);  // enough for tiles
  for (const Isa isa : usable_isas()) {
    for (const int64_t rows : {t, 4 * t}) {
      Context context = context_of(isa, 1);
      std::vector<float> y(static_cast<size_t>(rows * n));
      product(c.packed, x.data(), k, y.data(), n, rows, context);
      for (int64_t first = 0; first < rows; first += t) {
        uint64_t hash = 0xcbf29ce484222325u;
        for (int64_t i = first * n; i < (first + t) * n; ++i)
          for (int shift = 0; shift < 32; shift += 8)
            hash = (hash ^ (std::bit_cast<uint32_t>(y[static_cast<size_t>(i)]) >> shift & 255)) * 0x100000001b3u;
        EXPECT_EQ(hash, kRecorded[static_cast<size_t>(GetParam())])
            << fmt::format("{} {} {:#x}, row {} of {}", format_of(GetParam()).name, name_of(isa), hash, first, rows);
      }
    }
  }
}

TEST_P(ProductTest, SeveralWeightsAtOnceGiveTheSameBits) {
  const int64_t k = 512, t = 29;
  const Case a(GetParam(), ComputeMode::kDefault, 75, k, random_),
      b(WeightType::kQ6_K, ComputeMode::kDefault, 16, k, random_),
      d(WeightType::kF16, ComputeMode::kDefault, 33, k, random_);
  const std::vector<float> x = random_rows(t, k, random_);
  for (const Isa isa : usable_isas()) {
    Context context = context_of(isa, 2);
    SCOPED_TRACE(describe(a, t, context));
    std::vector<float> apart(static_cast<size_t>(t * (75 + 16 + 33))), together(apart.size(), kNaN);
    float* at = apart.data();
    for (const Case* c : {&a, &b, &d}) {
      product(c->packed, x.data(), k, at, c->n, t, context);
      at += t * c->n;
    }
    const PackedWeight* const w[] = {&a.packed, &b.packed, &d.packed};
    float* const y[] = {together.data(), together.data() + t * 75, together.data() + t * 91};
    const int64_t stride[] = {75, 16, 33};
    products(w, x.data(), k, y, stride, t, context);
    ASSERT_EQ(std::memcmp(apart.data(), together.data(), apart.size() * 4), 0);
  }
}

TEST_P(ProductTest, ReadsAndWritesStridedRows) {
  const int64_t k = 256, n = 20, t = 9, x_stride = k + 5, y_stride = n + 11;
  const Case c(GetParam(), ComputeMode::kDefault, n, k, random_);
  const std::vector<float> x = random_rows(t, k, random_);
  std::vector<float> wide(static_cast<size_t>(t * x_stride), kNaN);
  for (int64_t r = 0; r < t; ++r) std::copy_n(x.begin() + r * k, k, wide.begin() + r * x_stride);
  for (const Isa isa : usable_isas()) {
    Context context = context_of(isa, 2);
    std::vector<float> dense(static_cast<size_t>(t * n)), y(static_cast<size_t>(t * y_stride), kGuard);
    product(c.packed, x.data(), k, dense.data(), n, t, context);
    product(c.packed, wide.data(), x_stride, y.data(), y_stride, t, context);
    for (int64_t r = 0; r < t; ++r) {
      EXPECT_EQ(std::memcmp(dense.data() + r * n, y.data() + r * y_stride, static_cast<size_t>(n) * 4), 0);
      for (int64_t i = n; i < y_stride; ++i) EXPECT_EQ(y[static_cast<size_t>(r * y_stride + i)], kGuard);
    }
  }
}

TEST_P(ProductTest, WhatIsNotFiniteShowsInItsRowOnly) {
  const int64_t k = 512, n = 33, t = 8;
  for (const ComputeMode mode : {ComputeMode::kDefault, ComputeMode::kF32}) {
    const Case c(GetParam(), mode, n, k, random_);
    const std::vector<float> clean = random_rows(t, k, random_);
    for (const float bad : {kNaN, std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
      std::vector<float> x = clean;
      x[static_cast<size_t>(3 * k + 77)] = bad;
      for (const Isa isa : usable_isas()) {
        Context context = context_of(isa, 2);
        SCOPED_TRACE(describe(c, t, context));
        std::vector<float> expected(static_cast<size_t>(t * n)), y(expected.size(), kGuard);
        product(c.packed, clean.data(), k, expected.data(), n, t, context);
        product(c.packed, x.data(), k, y.data(), n, t, context);
        for (int64_t i = 0; i < t * n; ++i) {
          const size_t at = static_cast<size_t>(i);
          if (i / n == 3) {
            EXPECT_FALSE(std::isfinite(y[at])) << i;
          } else {
            EXPECT_EQ(y[at], expected[at]) << i;
          }
        }
      }
    }
  }
}

TEST_P(ProductTest, TinyZeroAndHugeActivationsStayWithinTheBound) {
  const int64_t k = 256, n = 17, t = 6;
  const Case c(GetParam(), ComputeMode::kDefault, n, k, random_);
  std::vector<float> x = random_rows(t, k, random_);
  const float scale[] = {0, 1e-38f, 1e-42f, 1e-30f, 1e30f, 1e-20f};
  for (int64_t i = 0; i < t * k; ++i) x[static_cast<size_t>(i)] *= scale[i / k];
  for (const Isa isa : usable_isas()) {
    Context context = context_of(isa, 1);
    SCOPED_TRACE(describe(c, t, context));
    c.expect_right(x, t, context);
  }
}

TEST_P(ProductTest, UnpackedRowsAreTheDequantisedOnes) {
  for (const ComputeMode mode : {ComputeMode::kDefault, ComputeMode::kF32}) {
    const Case c(GetParam(), mode, 37, 768, random_);
    std::vector<float> row(768);
    for (int64_t r = 0; r < c.n; ++r) {
      unpack_row(c.packed, r, row.data());
      ASSERT_EQ(std::memcmp(row.data(), c.w.data() + r * 768, 768 * 4), 0) << "seed " << seed_ << " row " << r;
    }
    EXPECT_THROW(unpack_row(c.packed, 37, row.data()), Error);
    EXPECT_THROW(unpack_row(c.packed, -1, row.data()), Error);
    EXPECT_THROW(unpack_row(c.packed, 0, nullptr), Error);
  }
}

TEST_P(ProductTest, PackingTellsWhichRowsAreDone) {
  struct Ranges : RowsDone {
    int64_t next = 0;
    int calls = 0;
    void rows_done(int64_t first, int64_t last) override {
      EXPECT_EQ(first, next);
      EXPECT_LT(first, last);
      next = last;
      ++calls;
    }
  } ranges;
  Context context(2);
  const int64_t n = 8001, k = 1024;
  const std::vector<uint8_t> blocks = test::random_blocks(GetParam(), n, k, random_);
  pack_weight(GetParam(), blocks.data(), n, k, ComputeMode::kDefault, context, &ranges);
  EXPECT_EQ(ranges.next, n);
  if (blocks.size() > (16u << 20)) {
    EXPECT_GT(ranges.calls, 1);
  }
}

TEST_P(ProductTest, RefusesWhatDoesNotFit) {
  Context context(1);
  const Case c(GetParam(), ComputeMode::kDefault, 16, 256, random_);
  std::vector<float> x(512), y(32);
  const auto pack = [&](int64_t n, int64_t k, const void* p) {
    pack_weight(GetParam(), p, n, k, ComputeMode::kDefault, context);
  };
  EXPECT_THROW(pack(0, 256, c.blocks.data()), Error);
  EXPECT_THROW(pack(-1, 256, c.blocks.data()), Error);
  EXPECT_THROW(pack(1, 0, c.blocks.data()), Error);
  EXPECT_THROW(pack(1, 256, nullptr), Error);
  EXPECT_THROW(pack(int64_t{1} << 60, 256, c.blocks.data()), Error);
  if (format_of(GetParam()).block_elements > 1) {
    EXPECT_THROW(pack(1, 100, c.blocks.data()), Error);
  }
  EXPECT_THROW(product(c.packed, nullptr, 256, y.data(), 16, 1, context), Error);
  EXPECT_THROW(product(c.packed, x.data(), 256, nullptr, 16, 1, context), Error);
  EXPECT_THROW(product(c.packed, x.data(), 255, y.data(), 16, 2, context), Error);
  EXPECT_THROW(product(c.packed, x.data(), 256, y.data(), 15, 2, context), Error);
  EXPECT_THROW(product(c.packed, x.data(), 256, y.data(), 16, -1, context), Error);
  EXPECT_THROW(product(PackedWeight{}, x.data(), 256, y.data(), 16, 1, context), Error);
  EXPECT_NO_THROW(product(c.packed, nullptr, 256, nullptr, 16, 0, context));

  const Case longer(GetParam(), ComputeMode::kDefault, 16, 512, random_);
  const PackedWeight* const mixed[] = {&c.packed, &longer.packed};
  const PackedWeight* const absent[] = {&c.packed, nullptr};
  float* const out[] = {y.data(), y.data() + 16};
  const int64_t stride[] = {16, 16};
  EXPECT_THROW(products(mixed, x.data(), 512, out, stride, 1, context), Error);
  EXPECT_THROW(products(absent, x.data(), 512, out, stride, 1, context), Error);
  EXPECT_THROW(products({mixed, 1}, x.data(), 512, out, stride, 1, context), Error);
  EXPECT_NO_THROW(products({}, nullptr, 0, {}, {}, 1, context));
}

INSTANTIATE_TEST_SUITE_P(Types, ProductTest, testing::ValuesIn(kAllTypes),
                         [](const auto& test) { return std::string(format_of(test.param).name); });

}  // namespace
}  // namespace attend
