#pragma once
// The arithmetic of attention's products: queries with keys, weights with values.
#include <string_view>

namespace attend {

enum class Compute {
  kF32,
  kBF16,  // operands rounded to bf16 (to nearest even), sums in f32
  kInt8,  // operands are integers times a scale: one a row of a query, key or value, one for 64 weights of a row
  kFp8,   // the same with numbers of e4m3 in place of integers
  kInt8Hadamard,  // both after queries and keys were turned by a random Hadamard matrix, which spreads outliers
  kFp8Hadamard,
  kInt8Qk,  // queries and keys as of kInt8, keys smoothed by blocks; weights and values as of kBF16
};
inline constexpr int kComputeCount = 7;

constexpr std::string_view name_of(Compute compute) {
  constexpr std::string_view names[] = {"f32", "bf16", "int8", "fp8", "int8-hadamard", "fp8-hadamard", "int8-qk"};
  return names[static_cast<int>(compute)];
}

// Of both products.
constexpr bool is_int8(Compute compute) {
  return compute == Compute::kInt8 || compute == Compute::kInt8Hadamard;
}
constexpr bool is_fp8(Compute compute) {
  return compute == Compute::kFp8 || compute == Compute::kFp8Hadamard;
}
constexpr bool is_turned(Compute compute) {
  return compute == Compute::kInt8Hadamard || compute == Compute::kFp8Hadamard;
}

// By name; f32 if there is none such.
constexpr Compute compute_of(std::string_view name) {
  for (int i = 0; i < kComputeCount; ++i)
    if (name_of(static_cast<Compute>(i)) == name) return static_cast<Compute>(i);
  return Compute::kF32;
}

}  // namespace attend
