#pragma once
#include <cstdint>
#include <random>
#include <vector>

namespace attend::test {

// Draws from the standard normal distribution.
inline std::vector<float> normal(int64_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> draw;
  std::vector<float> x(static_cast<size_t>(n));
  for (float& e : x) e = draw(random);
  return x;
}

}  // namespace attend::test
