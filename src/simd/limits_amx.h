#pragma once
// Limits of tiles.
#include <cstdint>

namespace attend::amx {

// Multiply-adds of a round, in bf16 and in bytes.
inline constexpr int64_t kBF16MultiplyAdds = 4 * 16 * 16 * 32, kByteMultiplyAdds = 4 * 16 * 16 * 64;

float bf16_limit(int64_t rounds) noexcept;
float int8_limit(int64_t rounds) noexcept;
float int16_limit(int64_t rounds) noexcept;  // integers of two bytes: twice the products

}  // namespace attend::amx
