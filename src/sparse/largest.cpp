#include "sparse/largest.h"

#include <bit>
#include <cmath>

#include "attend/simd/hook.h"

namespace attend {
namespace {

// Integers in the order of the numbers: those of negative ones are turned over. A NaN counts as infinity.
inline int32_t in_order(float x) {
  const int32_t bits = std::bit_cast<int32_t>(x != x ? INFINITY : x);
  return bits ^ static_cast<int32_t>(static_cast<uint32_t>(bits >> 31) >> 1);
}

struct Loops {
  [[gnu::always_inline]] static inline void order_loop(const float* x, int64_t n, int32_t* order) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) order[i] = in_order(x[i]);
  }
  // How many are `least` or more.
  [[gnu::always_inline]] static inline int64_t count_loop(const int32_t* x, int64_t n, int32_t least) {
    int64_t count = 0;
    for (int64_t first = 0; first < n; first += 1 << 16) {
      const int64_t end = n < first + (1 << 16) ? n : first + (1 << 16);
      int32_t part = 0;
#pragma omp simd reduction(+ : part)
      for (int64_t i = first; i < end; ++i) part += x[i] >= least ? 1 : 0;
      count += part;
    }
    return count;
  }
  ATTEND_TARGET_AVX2 static void order_avx2(const float* x, int64_t n, int32_t* order) {
    order_loop(x, n, order);
  }
  ATTEND_TARGET_AVX512 static void order_avx512(const float* x, int64_t n, int32_t* order) {
    order_loop(x, n, order);
  }
  ATTEND_TARGET_AVX2 static int64_t count_avx2(const int32_t* x, int64_t n, int32_t least) {
    return count_loop(x, n, least);
  }
  ATTEND_TARGET_AVX512 static int64_t count_avx512(const int32_t* x, int64_t n, int32_t least) {
    return count_loop(x, n, least);
  }

  explicit Loops(Isa isa)
      : order(isa == Isa::kAvx2 ? order_avx2 : order_avx512), count(isa == Isa::kAvx2 ? count_avx2 : count_avx512) {}
  void (*order)(const float*, int64_t, int32_t*);
  int64_t (*count)(const int32_t*, int64_t, int32_t);
};

}  // namespace

void largest(std::span<const float> scores, int64_t k, Isa isa, std::vector<int32_t>& order,
             std::vector<int64_t>& chosen) {
  const int64_t n = static_cast<int64_t>(scores.size());
  chosen.clear();
  if (k <= 0) return;
  order.resize(scores.size());
  const Loops loops(isa);
  loops.order(scores.data(), n, order.data());
  // The largest integer that k of them reach, from its highest bit on.
  uint32_t reached = 0;  // + 2^31
  for (uint32_t bit = 1u << 31; bit; bit >>= 1) {
    const int32_t least = static_cast<int32_t>((reached | bit) ^ (1u << 31));
    if (loops.count(order.data(), n, least) >= k) reached |= bit;
  }
  const int32_t last = static_cast<int32_t>(reached ^ (1u << 31));
  int64_t left_out = loops.count(order.data(), n, last) - k;  // of those that equal the last
  chosen.resize(static_cast<size_t>(k));
  size_t to = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t x = order[static_cast<size_t>(i)];
    if (x < last || (x == last && left_out-- > 0)) continue;
    chosen[to++] = i;
  }
}

}  // namespace attend
