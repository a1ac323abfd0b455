#pragma once
// Plain loops compiled for an instruction set.
#include "attend/simd/hook.h"
#include "attend/tensor/isa.h"

namespace attend::exact {

template <class Body>
ATTEND_TARGET_AVX2 void run_under_avx2(const Body& body) {
  body.run();
}
template <class Body>
ATTEND_TARGET_AVX512 void run_under_avx512(const Body& body) {
  body.run();
}

// Runs body.run(), which is inlined, under the flags of an instruction set.
template <class Body>
void run_under(Isa isa, const Body& body) {
  (isa == Isa::kAvx2 ? run_under_avx2<Body> : run_under_avx512<Body>)(body);
}

}  // namespace attend::exact
