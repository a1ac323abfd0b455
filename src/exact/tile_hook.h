#pragma once
// Hooks that want a whole tile at once: f.tile(Tile&), instantiated under each instruction set's flags. It has to be
// [[gnu::always_inline]], and so does what it calls.
#include "attend/simd/hook.h"

namespace attend::exact {

template <class F>
struct TileThunk {
  ATTEND_TARGET_AVX2 static void avx2(void* f, Tile& t) { static_cast<const F*>(f)->tile(t); }
  ATTEND_TARGET_AVX512 static void avx512(void* f, Tile& t) { static_cast<const F*>(f)->tile(t); }
};

// A tile from f(score, batch, head, query position, key position), for an operator() that is [[gnu::always_inline]]: it
// is forced into the loop however large it is.
template <class F>
struct EachScore {
  F f;
  [[gnu::always_inline]] inline void tile(Tile& t) const {
    for (int r = 0; r < t.rows; ++r) {
      float* s = t.s + r * t.stride;
      const int32_t i = t.q_position[r], *j = t.k_position;
      const int batch = t.batch, head = t.head, cols = t.cols;
#pragma omp simd
      for (int c = 0; c < cols; ++c) s[c] = f(s[c], batch, head, i, j[c]);
    }
  }
};
template <class F>
EachScore(F) -> EachScore<F>;

// `f` must outlive the calls that use the hook.
template <class F>
Hook tile_hook(const F& f) {
  Hook hook;
  hook.run.fill(&TileThunk<F>::avx512);
  hook.run[static_cast<int>(Isa::kAvx2)] = &TileThunk<F>::avx2;
  hook.self = const_cast<F*>(&f);  // tile() is const
  return hook;
}

}  // namespace attend::exact
