#include "exact/widen.h"

#include <algorithm>
#include <bit>

#include "attend/simd/dense.h"
#include "attend/simd/hook.h"
#include "attend/simd/isa.h"
#include "attend/tensor/parallel.h"

namespace attend::exact {
namespace {

struct Widen {
  [[gnu::always_inline]] static inline void half(const F16* x, int64_t n, float* to) {
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) to[c] = to_f32(x[c]);
  }
  [[gnu::always_inline]] static inline void brain(const BF16* x, int64_t n, float* to) {
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) to[c] = to_f32(x[c]);
  }
  ATTEND_TARGET_AVX2 static void avx2(const View& x, int64_t offset, int64_t n, float* to) {
    x.type == DType::kF16 ? half(x.as<F16>() + offset, n, to) : brain(x.as<BF16>() + offset, n, to);
  }
  ATTEND_TARGET_AVX512 static void avx512(const View& x, int64_t offset, int64_t n, float* to) {
    x.type == DType::kF16 ? half(x.as<F16>() + offset, n, to) : brain(x.as<BF16>() + offset, n, to);
  }
};

}  // namespace

void widen(const View& x, int64_t offset, int64_t n, Isa isa, float* to) {
  if (x.type == DType::kF32) {
    std::copy_n(x.as<float>() + offset, n, to);
  } else if (isa == Isa::kAvx2) {
    Widen::avx2(x, offset, n, to);
  } else {
    Widen::avx512(x, offset, n, to);
  }
}

View widened(const View& x, Buffer& memory, Context& context) {
  if (x.type == DType::kF32) return x;
  memory = Buffer(std::max<int64_t>(1, x.count()) * 4);
  const View wide = dense_view(memory.data(), DType::kF32, x.rank, x.shape);
  const DenseKernels& kernels = dense_kernels(active_isa(context));
  parallel_for(context.threads, x.shape[0] * x.shape[1], [&](int64_t task, int) {
    const int64_t b = task / x.shape[1], h = task % x.shape[1];
    kernels.widen(x.type, x.as<char>() + (b * x.stride[0] + h * x.stride[1]) * size_of(x.type), x.stride[2], x.shape[2],
                  x.shape[3], wide.at<float>({b, h}), x.shape[3]);
  });
  return wide;
}

}  // namespace attend::exact
