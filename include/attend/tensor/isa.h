#pragma once
// The instruction sets that have kernels, or a place for them.
#include <string_view>

namespace attend {

enum class Isa { kAvx2, kAvx512, kAvx512Vnni, kAvx512Bf16, kAmx, kNeon, kNeonDot };
inline constexpr int kIsaCount = 7;

constexpr std::string_view name_of(Isa isa) {
  constexpr std::string_view names[] = {"avx2", "avx512", "avx512vnni", "avx512bf16", "amx", "neon", "neondot"};
  return names[static_cast<int>(isa)];
}

// Whether code for Isa::kAvx512 runs where `isa` does.
constexpr bool has_avx512(Isa isa) {
  return isa >= Isa::kAvx512 && isa <= Isa::kAmx;
}
// And for Isa::kNeon.
constexpr bool has_neon(Isa isa) {
  return isa >= Isa::kNeon;
}

}  // namespace attend
