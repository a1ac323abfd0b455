#pragma once
// The random signs of Compute::kInt8Hadamard: the same on every machine.
#include <array>
#include <cstdint>

namespace attend {

constexpr std::array<float, 512> make_turn_signs() {
  std::array<float, 512> table{};
  for (size_t i = 0; i < table.size(); ++i) {
    uint64_t z = (i + 1) * 0x9e3779b97f4a7c15u;  // splitmix64
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    table[i] = z >> 63 ? -1.0f : 1.0f;
  }
  return table;
}
inline constexpr std::array<float, 512> kTurnSigns = make_turn_signs();

}  // namespace attend
