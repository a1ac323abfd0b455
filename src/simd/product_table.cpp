#include "attend/simd/limits.h"
#include "attend/tensor/error.h"
#include "simd/limits_amx.h"
#include "simd/product_kernels.h"

namespace attend {
namespace {

[[maybe_unused]] bool has_vnni(Isa isa) {
  return isa == Isa::kAvx512Vnni || isa == Isa::kAvx512Bf16 || isa == Isa::kAmx;
}

// Below it, tiles would be empty for the most part, and weights widened for few.
[[maybe_unused]] constexpr int64_t kRowsForTiles = 16;

}  // namespace

const ProductKernels& product_kernels(Isa isa, [[maybe_unused]] int64_t rows) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx2) return avx2::kProductKernels;
  if (isa == Isa::kAvx512) return avx512::kProductKernels;
  if (isa == Isa::kAmx && rows >= kRowsForTiles) return amx::product_kernels();
  if (has_vnni(isa)) return avx512vnni::kProductKernels;
#elif defined(__aarch64__)
  if (isa == Isa::kNeon) return neon::kProductKernels;
  if (isa == Isa::kNeonDot) return neondot::kProductKernels;
#endif
  throw Error(ErrorKind::kUnsupported, "product", "instruction set", name_of(isa), "has no product kernels yet");
}

ProductLimit product_limit(Isa isa, WeightType type) {
  const Activation form = activation_of(type);
  if (form == Activation::kF32) {
    const LimitKernels& k = limit_kernels(isa);
    return {k.multiply_add, k.flops_per_round / 2};
  }
  [[maybe_unused]] auto of = [&](const ProductLimits& limits) {
    return ProductLimit{form == Activation::kInt16 ? limits.int16 : limits.int8, limits.multiply_adds};
  };
#if defined(__x86_64__)
  if (isa == Isa::kAvx2) return of(avx2::kProductLimits);
  if (isa == Isa::kAvx512) return of(avx512::kProductLimits);
  if (isa == Isa::kAmx) return of({amx::int8_limit, amx::int16_limit, amx::kByteMultiplyAdds});
  if (has_vnni(isa)) return of(avx512vnni::kProductLimits);
#elif defined(__aarch64__)
  if (isa == Isa::kNeon) return of(neon::kProductLimits);
  if (isa == Isa::kNeonDot) return of(neondot::kProductLimits);
#endif
  throw Error(ErrorKind::kUnsupported, "product", "instruction set", name_of(isa), "has no product kernels yet");
}

}  // namespace attend
