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
