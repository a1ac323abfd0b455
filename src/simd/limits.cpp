#include "attend/simd/limits.h"

#include "attend/tensor/error.h"
#include "simd/limits_amx.h"

namespace attend {

extern const LimitKernels kLimitsAvx2, kLimitsAvx512, kLimitsAvx512Bf16, kLimitsNeon;

const LimitKernels& limit_kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx2) return kLimitsAvx2;
  if (isa == Isa::kAvx512 || isa == Isa::kAvx512Vnni) return kLimitsAvx512;
  if (isa == Isa::kAvx512Bf16) return kLimitsAvx512Bf16;
  if (isa == Isa::kAmx) {
    static const LimitKernels kernels = [] {
      LimitKernels k = kLimitsAvx512Bf16;
      k.bf16_multiply_add = amx::bf16_limit;
      k.bf16_flops_per_round = 2 * amx::kBF16MultiplyAdds;
      return k;
    }();
    return kernels;
  }
#elif defined(__aarch64__)
  if (has_neon(isa)) return kLimitsNeon;
#endif
  throw Error(ErrorKind::kUnsupported, "simd", "instruction set", name_of(isa), "has no limit kernels yet");
}

}  // namespace attend
