#pragma once
// The arithmetic of attention's products: queries with keys, weights with values.
#include <string_view>

namespace attend {

enum class Compute {
  kF32,
  kBF16,  // operands rounded to bf16 (to nearest even), sums in f32
};

constexpr std::string_view name_of(Compute compute) {
  constexpr std::string_view names[] = {"f32", "bf16"};
  return names[static_cast<int>(compute)];
}

}  // namespace attend
