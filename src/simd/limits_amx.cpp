// The products of tiles alone, each with the load of an operand, for benchmarks to measure against: what tiles reach
// without loads says nothing of what a kernel can.
#include "simd/limits_amx.h"

#if defined(__x86_64__)
#include "simd/tiles.h"

namespace attend::amx {
namespace {

template <void (*kFirst)(), void (*kSecond)(), void (*kThird)(), void (*kFourth)()>
float products(int64_t rounds) noexcept {
  alignas(64) static constexpr uint8_t kOperand[kTileRows * kTileBytes] = {};
  alignas(64) float sums[kTileRows * kTileRows];
  const Tiles tiles(kTileRows);
  Tiles::zero<0>();
  Tiles::zero<1>();
  Tiles::zero<2>();
  Tiles::zero<3>();
  Tiles::load<4>(kOperand, kTileBytes);
  Tiles::load<5>(kOperand, kTileBytes);
  for (int64_t r = 0; r < rounds; ++r) {
    Tiles::load<6>(kOperand, kTileBytes);
    kFirst();
    Tiles::load<7>(kOperand, kTileBytes);
    kSecond();
    Tiles::load<6>(kOperand, kTileBytes);
    kThird();
    Tiles::load<7>(kOperand, kTileBytes);
    kFourth();
  }
  Tiles::store<0>(sums, kTileBytes);
  return sums[0];
}

}  // namespace

float bf16_limit(int64_t rounds) noexcept {
  return products<Tiles::multiply_bf16<0, 4, 6>, Tiles::multiply_bf16<1, 4, 7>, Tiles::multiply_bf16<2, 5, 6>,
                  Tiles::multiply_bf16<3, 5, 7>>(rounds);
}

float int8_limit(int64_t rounds) noexcept {
  return products<Tiles::multiply_s8u8<0, 4, 6>, Tiles::multiply_s8u8<1, 4, 7>, Tiles::multiply_s8u8<2, 5, 6>,
                  Tiles::multiply_s8u8<3, 5, 7>>(rounds);
}

float int16_limit(int64_t rounds) noexcept {
  return int8_limit(2 * rounds);
}

}  // namespace attend::amx
#endif
