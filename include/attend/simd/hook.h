#pragma once
// Hooks: a function of (score or weight, batch, head, query position, key position) that runs inside the attention
// kernel.
//
// The pointer for each instruction set is made here, in the user's own file, under that set's target attributes, so a
// lambda is vectorised with the tile loop around it and costs a few instructions a score. Users need the flags
// -fno-trapping-math and -fopenmp-simd, which the CMake target attend::attend exports.
//
//   auto alibi = [&](float s, int b, int h, int i, int j) { return s + slope[h] * float(j - i); };
//   const Hook hook = make_hook(alibi);
//   softmax_attention(qkv, {.causal = true}, out, context, {.score = &hook});
#include <array>
#include <cstdint>
#include <type_traits>

#include "attend/tensor/isa.h"

namespace attend {

// A tile of scores of one head: rows are queries, columns are keys. Columns that a row does not see hold arbitrary
// values and are hidden after the hook. A score of -inf hides its key.
struct Tile {
  float* s;
  int64_t stride;
  int rows, cols, batch, head;
  const int32_t *q_position, *k_position;  // [rows], [cols]
};

// Called once a tile, from any thread: on scores after the scale and before soft-cap, bias and visibility, on weights
// (tiles of one row) where the normaliser makes them.
struct Hook {
  std::array<void (*)(void*, Tile&), kIsaCount> run{};
  void* self = nullptr;
};

#if defined(__x86_64__)
#define ATTEND_TARGET_AVX2 [[gnu::target("avx2,fma,f16c,bmi,bmi2")]]
#define ATTEND_TARGET_AVX512 [[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2")]]
#else  // the compiler's own target is all there is: on AArch64 it has vectors of 128 bits
#define ATTEND_TARGET_AVX2
#define ATTEND_TARGET_AVX512
#endif

namespace internal {

// `call` is an empty lambda: (F&, s, batch, head, i, j) -> float.
template <class F, class Call>
struct HookThunk {
  [[gnu::always_inline]] static inline void loop(F& f, Tile& t) {
    for (int r = 0; r < t.rows; ++r) {
      float* s = t.s + r * t.stride;
      const int32_t i = t.q_position[r], *j = t.k_position;
      const int batch = t.batch, head = t.head, cols = t.cols;
#pragma omp simd
      for (int c = 0; c < cols; ++c) s[c] = Call()(f, s[c], batch, head, i, j[c]);
    }
  }
  ATTEND_TARGET_AVX2 static void avx2(void* f, Tile& t) {
    loop(*static_cast<F*>(f), t);
  }
  ATTEND_TARGET_AVX512 static void avx512(void* f, Tile& t) {
    loop(*static_cast<F*>(f), t);
  }
};

template <class F, class Call>
Hook make_hook(F& f, Call) {
  using Thunk = HookThunk<F, Call>;
  Hook hook;
  hook.run.fill(&Thunk::avx512);
  hook.run[static_cast<int>(Isa::kAvx2)] = &Thunk::avx2;
  hook.self = const_cast<std::remove_const_t<F>*>(&f);
  return hook;
}

}  // namespace internal

// A hook from f(score or weight, batch, head, query position, key position) -> float, for any place of `Variant`. `f`
// must outlive the calls that use it.
template <class F>
Hook make_hook(F& f) {
  return internal::make_hook(
      f, [](F& g, float s, int batch, int head, int32_t i, int32_t j) { return g(s, batch, head, i, j); });
}

}  // namespace attend
