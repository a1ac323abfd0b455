#include "attend/simd/backward.h"

#include "attend/tensor/error.h"
#include "simd/backward_layout.h"
#include "simd/backward_table.h"

namespace attend {

const BackwardKernels& backward_kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx2) return kBackwardAvx2;
  if (has_avx512(isa)) return kBackwardAvx512;
#elif defined(__aarch64__)
  if (has_neon(isa)) return kBackwardNeon;
#endif
  throw Error(ErrorKind::kUnsupported, "simd", "instruction set", name_of(isa), "has no backward kernels yet");
}

int64_t backward_scratch_bytes(int64_t d, int64_t dv) {
  return backward_layout::layout(d, dv).bytes;
}

BackwardSums backward_sums(const std::byte* scratch, int64_t d, int64_t dv) {
  const backward_layout::Layout l = backward_layout::layout(d, dv);
  return {reinterpret_cast<const float*>(scratch + l.dk), reinterpret_cast<const float*>(scratch + l.dv)};
}

}  // namespace attend
