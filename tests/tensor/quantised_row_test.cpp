// Rows of q8_0 and q4_0 against their definition, worked out here in double.
#include "attend/tensor/quantised_row.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "attend/simd/isa.h"
#include "attend/simd/row_ops.h"
#include "attend/tensor/dlpack.h"
#include "attend/tensor/error.h"
#include "attend/tensor/npy.h"
#include "attend/tensor/view.h"
#include "support/expect_error.h"

namespace attend {
namespace {

constexpr DType kTypes[] = {DType::kQ8_0, DType::kQ4_0};

std::vector<uint8_t> coded(const std::vector<float>& x, DType type) {
  std::vector<uint8_t> row(static_cast<size_t>(row_bytes(type, static_cast<int64_t>(x.size()))));
  quantise_row(x.data(), static_cast<int64_t>(x.size()), type, row.data());
  return row;
}

std::vector<float> decoded(const std::vector<uint8_t>& row, int64_t n, DType type) {
  std::vector<float> x(static_cast<size_t>(n));
  dequantise_row(row.data(), n, type, x.data());
  return x;
}

// Integer i of a row of n, with its offset.
int integer(const std::vector<uint8_t>& row, DType type, size_t i) {
  if (type == DType::kQ8_0) return static_cast<int8_t>(row[i]);
  const int pair = row[i / 32 * 16 + i % 16];
  return (i % 32 < 16 ? pair & 15 : pair >> 4) - 8;
}

float scale(const std::vector<uint8_t>& row, DType type, size_t n, size_t block) {
  F16 d;
  std::memcpy(&d, row.data() + (type == DType::kQ8_0 ? n : n / 2) + 2 * block, 2);
  return to_f32(d);
}

TEST(QuantisedRow, SizesAreThoseOfTheFormat) {
  EXPECT_EQ(row_bytes(DType::kQ8_0, 128), 128 + 8);
  EXPECT_EQ(row_bytes(DType::kQ4_0, 128), 64 + 8);
  EXPECT_EQ(row_bytes(DType::kF16, 128), 256);
  EXPECT_EQ(name_of(DType::kQ8_0), "q8_0");
  EXPECT_EQ(name_of(DType::kQ4_0), "q4_0");
}

// Blocks whose integers follow by hand: multiples of a scale that f16 holds, ties, the sign of the largest.
TEST(QuantisedRow, BlocksByHand) {
  std::vector<float> x(64, 0.0f);
  x[0] = 127.0f, x[1] = 2.5f, x[2] = -2.5f, x[3] = 2.49f, x[4] = -0.5f, x[31] = -126.6f;  // d = 1
  x[32] = -31.75f, x[33] = 0.125f, x[63] = 31.75f;                                        // d = 1/4
  const auto eight = coded(x, DType::kQ8_0);
  const std::pair<size_t, int> wanted8[] = {{0, 127}, {1, 3},     {2, -3}, {3, 2},     {4, -1},
                                            {5, 0},   {31, -127}, {33, 1}, {32, -127}, {63, 127}};
  for (const auto& [i, q] : wanted8) EXPECT_EQ(integer(eight, DType::kQ8_0, i), q) << i;
  EXPECT_EQ(scale(eight, DType::kQ8_0, 64, 0), 1.0f);
  EXPECT_EQ(scale(eight, DType::kQ8_0, 64, 1), 0.25f);
  EXPECT_EQ(decoded(eight, 64, DType::kQ8_0)[63], 31.75f);

  std::fill(x.begin(), x.end(), 0.0f);
  x[0] = -8, x[1] = 7.6f, x[2] = 0.5f, x[3] = -0.5f, x[4] = -0.51f, x[16] = 7, x[31] = 3;  // d = 1: floor(x + 8.5)
  x[32] = 4, x[33] = -4, x[40] = 1;                                                        // 4 comes first: d = -1/2
  const auto four = coded(x, DType::kQ4_0);
  const std::pair<size_t, int> wanted4[] = {{0, -8}, {1, 7},  {2, 1},   {3, 0},  {4, -1}, {5, 0},
                                            {16, 7}, {31, 3}, {32, -8}, {33, 7}, {40, -2}};
  for (const auto& [i, q] : wanted4) EXPECT_EQ(integer(four, DType::kQ4_0, i), q) << i;
  EXPECT_EQ(scale(four, DType::kQ4_0, 64, 0), 1.0f);
  EXPECT_EQ(scale(four, DType::kQ4_0, 64, 1), -0.5f);
  EXPECT_EQ(decoded(four, 64, DType::kQ4_0)[33], -3.5f);
  EXPECT_EQ(four[0], 0 | 15 << 4) << "element 16 is the high half of the first byte";
}

// Random blocks of all magnitudes. x / d in double rounds as ggml's f32 does unless it is near a tie.
TEST(QuantisedRow, RandomBlocksFollowTheDefinition) {
  constexpr unsigned kSeed = 20;
  std::mt19937 random(kSeed);
  std::normal_distribution<float> normal;
  int64_t compared = 0;
  for (int trial = 0; trial < 2000; ++trial) {
    std::vector<float> x(96);
    const float size = std::exp2(static_cast<float>(static_cast<int>(random() % 28) - 14));
    for (float& v : x) v = size * normal(random);
    for (DType type : kTypes) {
      const auto row = coded(x, type);
      const auto back = decoded(row, 96, type);
      for (size_t block = 0; block < 3; ++block) {
        double m = 0;
        for (size_t i = 32 * block; i < 32 * block + 32; ++i)
          if (std::fabs(static_cast<double>(x[i])) > std::fabs(m)) m = static_cast<double>(x[i]);
        const bool eight = type == DType::kQ8_0;
        const float d = static_cast<float>(eight ? std::fabs(m) / 127 : m / -8), stored = to_f32(to_f16(d));
        ASSERT_EQ(scale(row, type, 96, block), stored) << "seed " << kSeed;
        for (size_t i = 32 * block; i < 32 * block + 32; ++i) {
          const double ratio = static_cast<double>(x[i]) / static_cast<double>(d);
          const double exact = eight ? ratio : ratio + 8.5, nearest = eight ? exact - 0.5 : exact;
          if (std::fabs(nearest - std::round(nearest)) < 1e-4) continue;  // a tie: f32 decides
          const double q = eight ? std::round(exact) : std::min(15.0, std::floor(exact)) - 8;
          ASSERT_EQ(integer(row, type, i), q) << x[i] << " by " << d << ", seed " << kSeed;
          ASSERT_EQ(back[i], static_cast<float>(q) * stored);
          ++compared;
        }
      }
    }
  }
  EXPECT_GT(compared, 2000 * 96 * 2 * 9 / 10);
}

// KIVI's section 3.1 in double: s and z of what is given, and each element by them.
void expect_coded(const std::vector<float>& x, int bits, F16 scale, F16 offset, const std::vector<float>& read) {
  const int levels = (1 << bits) - 1;
  const auto [low, high] = std::minmax_element(x.begin(), x.end());
  ASSERT_EQ(offset.bits, to_f16(*low).bits);
  const double s = static_cast<double>(to_f32(scale)), z = static_cast<double>(to_f32(offset));
  const double exact = (static_cast<double>(*high) - static_cast<double>(*low)) / levels;
  ASSERT_NEAR(s, exact, exact * 0x1p-10 + 0x1p-24);
  for (size_t i = 0; i < x.size(); ++i) {
    const double v = static_cast<double>(x[i]), got = static_cast<double>(read[i]);
    const double steps = s > 0 ? (v - z) / s : 0;
    const double q = std::clamp(std::floor(steps + 0.5), 0.0, static_cast<double>(levels));
    // Half a step, and what the rounding of z, of s (times q) and of the result lose.
    const double loss = 0x1p-10 * (std::fabs(z) + levels * s) + 0x1p-23 * (std::fabs(v) + s) + 0x1p-24 * (levels + 1);
    ASSERT_LE(std::fabs(got - v), s / 2 + loss) << "element " << i;
    if (std::fabs(steps + 0.5 - std::round(steps + 0.5)) < 1e-4) continue;  // a tie: f32 decides
    ASSERT_EQ(read[i], static_cast<float>(q * s + z)) << "element " << i;
  }
}

TEST(QuantisedRow, OffsetsFollowTheDefinition) {
  constexpr unsigned kSeed = 31;
  SCOPED_TRACE(kSeed);
  std::mt19937 random(kSeed);
  std::normal_distribution<float> normal;
  for (int trial = 0; trial < 500; ++trial) {
    const size_t n = 32 * (1 + random() % 3), rows = 1 + random() % 40;
    const float size = std::exp2(static_cast<float>(static_cast<int>(random() % 20) - 10)), mean = 3 * normal(random);
    std::vector<float> x(rows * n);
    for (float& v : x) v = size * (mean + normal(random));
    for (const DType type : {DType::kQ4_1, DType::kQ2_1}) {
      const std::vector<float> row(x.begin(), x.begin() + static_cast<int64_t>(n));
      const auto codes = coded(row, type);
      const auto read = decoded(codes, static_cast<int64_t>(n), type);
      for (size_t b = 0; b < n / 32; ++b) {
        F16 scale, offset;
        const uint8_t* scales = codes.data() + n * static_cast<size_t>(code_bits(type)) / 8;
        std::memcpy(&scale, scales + 2 * b, 2);
        std::memcpy(&offset, scales + 2 * (n / 32 + b), 2);
        auto block = [&](const std::vector<float>& v) {
          return std::vector<float>(v.begin() + static_cast<int64_t>(32 * b),
                                    v.begin() + static_cast<int64_t>(32 * b + 32));
        };
        expect_coded(block(row), code_bits(type), scale, offset, block(read));
      }
    }
    for (const DType type : {DType::kQ4_C, DType::kQ2_C}) {
      const int64_t width = static_cast<int64_t>(n), bytes = row_bytes(type, width);
      std::vector<F16> scale(n), offset(n);
      std::vector<uint8_t> codes(rows * static_cast<size_t>(bytes));
      quantise_channels(x.data(), static_cast<int64_t>(rows), width, type, scale.data(), offset.data(), codes.data());
      const RowRun run{codes.data(), bytes, type, scale.data(), offset.data()};
      for (size_t c = 0; c < n; ++c) {
        std::vector<float> given, read;
        for (size_t r = 0; r < rows; ++r) {
          given.push_back(x[r * n + c]);
          read.push_back(element_of(run, static_cast<int64_t>(r), width, static_cast<int64_t>(c)));
        }
        expect_coded(given, code_bits(type), scale[c], offset[c], read);
      }
    }
  }
}

// Equal numbers need no scale; what is not finite, or beyond f16, shows in its block, or channel, and in no other.
TEST(QuantisedRow, ExtremesWithOffsets) {
  constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();
  for (const DType type : {DType::kQ4_1, DType::kQ2_1}) {
    const std::vector<float> equal(32, -1.5f);
    EXPECT_EQ(decoded(coded(equal, type), 32, type), equal);
    for (const float bad : {kInf, -kInf, kNan, 1e7f, -3e38f}) {
      std::vector<float> x(64, 1.0f);
      x[17] = bad;
      const auto back = decoded(coded(x, type), 64, type);
      for (size_t i = 0; i < 64; ++i) EXPECT_EQ(std::isnan(back[i]), i < 32) << name_of(type) << " of " << bad;
    }
  }
  for (const DType type : {DType::kQ4_C, DType::kQ2_C})
    for (const float bad : {kInf, -kInf, kNan, 1e7f, -3e38f}) {
      std::vector<float> x(3 * 32, 1.0f);
      x[32 + 5] = bad;
      std::vector<F16> scale(32), offset(32);
      std::vector<uint8_t> codes(static_cast<size_t>(3 * row_bytes(type, 32)));
      quantise_channels(x.data(), 3, 32, type, scale.data(), offset.data(), codes.data());
      const RowRun run{codes.data(), row_bytes(type, 32), type, scale.data(), offset.data()};
      for (int64_t r = 0; r < 3; ++r)
        for (int64_t c = 0; c < 32; ++c) {
          const float read = element_of(run, r, 32, c);
          EXPECT_TRUE(c == 5 ? std::isnan(read) : read == 1) << bad << ", channel " << c;
        }
    }
}

// What rounds to no scale is 0; what is not finite, or beyond every scale, shows in its block and in no other.
TEST(QuantisedRow, ExtremeBlocks) {
  constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();
  for (DType type : kTypes) {
    for (float small : {0.0f, -0.0f, 1e-8f, -1e-40f}) {
      std::vector<float> x(32, small);
      for (float v : decoded(coded(x, type), 32, type)) EXPECT_EQ(v, 0) << name_of(type) << " of " << small;
    }
    for (float bad : {kInf, -kInf, kNan, 1e7f, -3e38f}) {
      std::vector<float> x(64, 1.0f);
      x[17] = bad;
      const auto back = decoded(coded(x, type), 64, type);
      for (size_t i = 0; i < 32; ++i) EXPECT_TRUE(std::isnan(back[i])) << name_of(type) << " of " << bad;
      for (size_t i = 32; i < 64; ++i) EXPECT_NEAR(back[i], 1, 1.0 / 8);
    }
  }
}

// The store's vectorised form gives the same bytes.
TEST(QuantisedRow, NarrowGivesTheSameBytes) {
  constexpr unsigned kSeed = 7;
  std::mt19937 random(kSeed);
  std::normal_distribution<float> normal;
  const float special[] = {0.0f,
                           -0.0f,
                           1e-40f,
                           -1e-8f,
                           127.0f,
                           -127.0f,
                           63.5f,
                           1e7f,
                           std::numeric_limits<float>::infinity(),
                           std::numeric_limits<float>::quiet_NaN()};
  for (const IsaInfo& info : isa_list()) {
    if (!info.usable) continue;
    const auto narrow = row_ops(info.isa).narrow;
    for (int trial = 0; trial < 3000; ++trial) {
      const size_t n = 32 * (1 + random() % 4);
      std::vector<float> x(n);
      const float size = std::exp2(static_cast<float>(static_cast<int>(random() % 60) - 40));
      const int kind = static_cast<int>(random() % 4);
      for (float& v : x) {
        v = size * normal(random);
        if (kind == 1) v = std::round(v / size) * size;  // ties, and several of one magnitude
        if (kind == 2) v = random() % 2 ? size : -size;  // all of one magnitude
        if (kind == 3 && random() % 9 == 0) v = special[random() % std::size(special)];
      }
      for (DType type : kTypes) {
        const auto wanted = coded(x, type);
        std::vector<uint8_t> got(wanted.size());
        narrow(x.data(), static_cast<int64_t>(n), type, got.data());
        ASSERT_EQ(got, wanted) << name_of(type) << " " << name_of(info.isa) << " trial " << trial << " seed " << kSeed;
      }
    }
  }
}

TEST(QuantisedRow, RowsOfAnotherCodingAreNotWritten) {
  const std::vector<float> x(32, 1.0f);
  for (const IsaInfo& info : isa_list()) {
    if (!info.usable) continue;
    for (DType type : {DType::kQ4_1, DType::kQ2_1, DType::kI32}) {
      std::vector<uint8_t> row(128, 7);
      test::expect_error(ErrorKind::kUnsupported, name_of(type),
                         [&] { row_ops(info.isa).narrow(x.data(), 32, type, row.data()); });
      EXPECT_EQ(row, std::vector<uint8_t>(128, 7));
    }
  }
}

TEST(QuantisedRow, ArraysCantHaveTheType) {
  uint8_t bytes[34] = {};
  for (DType type : kTypes) {
    test::expect_error(ErrorKind::kArgument, name_of(type), [&] { dense_view(bytes, type, {32}); });
    const View made{.data = bytes, .type = type, .rank = 1, .shape = {32}, .stride = {1}};
    test::expect_error(ErrorKind::kArgument, name_of(type), [&] { value_at(made, 0); });
    test::expect_error(ErrorKind::kArgument, name_of(type), [&] { write_npy("/tmp/attend-no-array.npy", made); });
    test::expect_error(ErrorKind::kArgument, name_of(type), [&] { to_dlpack(Array{.storage = {}, .view = made}); });
  }
}

}  // namespace
}  // namespace attend
