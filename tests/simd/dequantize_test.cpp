// Against blocks and values recorded from the `gguf` Python package (scripts/record_quant_blocks.py).
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <random>

#include "attend/simd/product.h"
#include "attend/tensor/error.h"
#include "attend/tensor/npy.h"
#include "simd/quant_samples.h"

namespace attend {
namespace {

class DequantizeTest : public testing::TestWithParam<WeightType> {
 protected:
  DequantizeTest() {
    const std::string stem = fmt::format("{}/quant/{}", ATTEND_TEST_DATA, format_of(GetParam()).name);
    std::ifstream file(stem + ".blocks", std::ios::binary);
    blocks_.assign(std::istreambuf_iterator<char>(file), {});
    values_ = read_npy(stem + ".npy");
  }
  int64_t count() const { return values_.view.count(); }

  std::vector<char> blocks_;
  Array values_;
};

TEST_P(DequantizeTest, GivesTheRecordedBits) {
  const WeightFormat& format = format_of(GetParam());
  ASSERT_EQ(static_cast<int64_t>(blocks_.size()), count() / format.block_elements * format.block_bytes);
  std::vector<float> out(static_cast<size_t>(count()));
  dequantize(GetParam(), blocks_.data(), count(), out.data());
  for (size_t i = 0; i < out.size(); ++i)
    ASSERT_EQ(std::bit_cast<uint32_t>(out[i]), std::bit_cast<uint32_t>(values_.view.as<float>()[i])) << "element " << i;
}

TEST_P(DequantizeTest, PackedRowsGiveTheRecordedBits) {
  const WeightFormat& format = format_of(GetParam());
  const int64_t k = std::max<int64_t>(format.block_elements, 32), n = count() / k;
  Context context(2);
  const PackedWeight w = pack_weight(GetParam(), blocks_.data(), n, k, ComputeMode::kDefault, context);
  std::vector<float> row(static_cast<size_t>(k));
  for (int64_t r = 0; r < n; ++r) {
    unpack_row(w, r, row.data());
    ASSERT_EQ(std::memcmp(row.data(), values_.view.as<float>() + r * k, static_cast<size_t>(k) * 4), 0) << "row " << r;
  }
}

TEST_P(DequantizeTest, TermsAddUpToMagnitudes) {
  std::vector<float> terms(static_cast<size_t>(count()));
  dequantised_terms(GetParam(), blocks_.data(), count(), terms.data());
  const float* values = values_.view.as<float>();
  const std::vector<uint8_t> bytes(blocks_.begin(), blocks_.end());
  const std::vector<float> expected = test::terms_of(GetParam(), bytes, {values, values + count()});
  for (size_t i = 0; i < terms.size(); ++i)
    ASSERT_NEAR(terms[i], expected[i], 1e-6 * static_cast<double>(terms[i])) << "element " << i;
}

TEST_P(DequantizeTest, RefusesPartsOfBlocks) {
  std::vector<float> out(512);
  EXPECT_THROW(dequantize(GetParam(), blocks_.data(), -1, out.data()), Error);
  EXPECT_THROW(dequantize(GetParam(), nullptr, 256, out.data()), Error);
  EXPECT_THROW(dequantize(GetParam(), blocks_.data(), 256, nullptr), Error);
  EXPECT_NO_THROW(dequantize(GetParam(), nullptr, 0, nullptr));
  if (format_of(GetParam()).block_elements > 1) {
    EXPECT_THROW(dequantize(GetParam(), blocks_.data(), 17, out.data()), Error);
  }
}

INSTANTIATE_TEST_SUITE_P(Types, DequantizeTest, testing::ValuesIn(test::kAllTypes),
                         [](const auto& test) { return std::string(format_of(test.param).name); });

}  // namespace
}  // namespace attend
