// AMX is offered where its products are right.
#include "simd/tiles.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>

#include "attend/simd/isa.h"

namespace attend {
namespace {

float widened(uint16_t x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x) << 16);
}

void right_bf16(int rows, const uint16_t* a, const uint16_t* b, float* c) {
  for (int m = 0; m < rows; ++m)
    for (int n = 0; n < 16; ++n)
      for (int k = 0; k < 32; ++k) c[m * 16 + n] += widened(a[m * 32 + k]) * widened(b[k / 2 * 32 + 2 * n + k % 2]);
}

void right_s8u8(int rows, const int8_t* a, const uint8_t* b, int32_t* c) {
  for (int m = 0; m < rows; ++m)
    for (int n = 0; n < 16; ++n)
      for (int k = 0; k < 64; ++k) c[m * 16 + n] += a[m * 64 + k] * b[k / 4 * 64 + 4 * n + k % 4];
}

void right_u8s8(int rows, const uint8_t* a, const int8_t* b, int32_t* c) {
  for (int m = 0; m < rows; ++m)
    for (int n = 0; n < 16; ++n)
      for (int k = 0; k < 64; ++k) c[m * 16 + n] += a[m * 64 + k] * b[k / 4 * 64 + 4 * n + k % 4];
}

TEST(Tiles, RightProductsPass) {
  EXPECT_EQ(wrong_products({right_bf16, right_s8u8, right_u8s8}), "");
}

TEST(Tiles, WrongProductsAreNamed) {
  const auto bf16_error = [](auto product) { return wrong_products({product, right_s8u8, right_u8s8}); };
  // Nothing at all; sums that start from zero; pairs swapped in one operand; rows beyond the tile's.
  EXPECT_NE(bf16_error([](int, const uint16_t*, const uint16_t*, float*) {}).find("bf16"), std::string::npos);
  EXPECT_NE(bf16_error([](int rows, const uint16_t* a, const uint16_t* b, float* c) {
              std::fill_n(c, rows * 16, 0.0f);
              right_bf16(rows, a, b, c);
            }),
            "");
  EXPECT_NE(bf16_error([](int rows, const uint16_t* a, const uint16_t* b, float* c) {
              uint16_t swapped[16 * 32];
              for (int i = 0; i < 16 * 32; ++i) swapped[i] = b[i ^ 1];
              right_bf16(rows, a, swapped, c);
            }),
            "");
  EXPECT_NE(bf16_error([](int, const uint16_t* a, const uint16_t* b, float* c) { right_bf16(16, a, b, c); }), "");
  // Bytes of the second operand taken as signed.
  const std::string bytes =
      wrong_products({right_bf16,
                      [](int rows, const int8_t* a, const uint8_t* b, int32_t* c) {
                        for (int m = 0; m < rows; ++m)
                          for (int n = 0; n < 16; ++n)
                            for (int k = 0; k < 64; ++k)
                              c[m * 16 + n] += a[m * 64 + k] * static_cast<int8_t>(b[k / 4 * 64 + 4 * n + k % 4]);
                      },
                      right_u8s8});
  EXPECT_NE(bytes.find("its int8"), std::string::npos) << bytes;
  // And those of the first.
  const std::string unsigned_bytes =
      wrong_products({right_bf16, right_s8u8, [](int rows, const uint8_t* a, const int8_t* b, int32_t* c) {
                        for (int m = 0; m < rows; ++m)
                          for (int n = 0; n < 16; ++n)
                            for (int k = 0; k < 64; ++k)
                              c[m * 16 + n] += static_cast<int8_t>(a[m * 64 + k]) * b[k / 4 * 64 + 4 * n + k % 4];
                      }});
  EXPECT_NE(unsigned_bytes.find("its uint8"), std::string::npos) << unsigned_bytes;
}

// isa_list() offered AMX after asking the OS and checking the products.
TEST(Tiles, OfferedProductsAreRight) {
  if (!isa_list()[static_cast<size_t>(Isa::kAmx)].usable)
    GTEST_SKIP() << isa_list()[static_cast<size_t>(Isa::kAmx)].why_not;
  EXPECT_EQ(wrong_products(tile_products()), "");
}

}  // namespace
}  // namespace attend
