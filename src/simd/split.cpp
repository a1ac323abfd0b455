#include "attend/simd/split.h"

#include "attend/tensor/error.h"
#include "simd/split_layout.h"
#include "simd/split_table.h"

namespace attend {

const SplitKernels& split_kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx2) return kSplitAvx2;
  if (isa == Isa::kAvx512 || isa == Isa::kAvx512Vnni) return kSplitAvx512;
  if (isa == Isa::kAvx512Bf16) return kSplitAvx512Bf16;
  if (isa == Isa::kAmx) return kSplitAmx;
#elif defined(__aarch64__)
  if (has_neon(isa)) return kSplitNeon;
#endif
  throw Error(ErrorKind::kUnsupported, "simd", "instruction set", name_of(isa), "has no attention kernels yet");
}

int64_t split_scratch_bytes(int64_t d, int64_t dv) {
  return split_layout::layout(d, dv).bytes;
}

}  // namespace attend
