#pragma once
// Where the backward kernels keep what they need in their scratch memory.
#include <cstdint>

#include "attend/simd/backward.h"

namespace attend::backward_layout {

struct Layout {
  int64_t keys, values, k_panels, v_panels, dk, dv, weights, gradients, slopes, sums, positions, bytes;  // offsets
};

constexpr Layout layout(int64_t d, int64_t dv) {
  auto up = [](int64_t n) { return (n + 63) / 64 * 64; };
  const int64_t keys = kBackwardPositions * padded_dv(d) * 4, values = kBackwardPositions * padded_dv(dv) * 4;
  const int64_t strip = kBackwardRows * kBackwardStride * 4;
  Layout l{};
  l.values = l.keys + keys;
  l.k_panels = l.values + values;
  l.v_panels = l.k_panels + keys;
  l.dk = l.v_panels + values;
  l.dv = l.dk + keys;
  l.weights = l.dv + values;
  l.gradients = l.weights + strip;
  l.slopes = l.gradients + strip;
  l.sums = l.slopes + strip;
  l.positions = l.sums + up(2 * kBackwardRows * 4);
  l.bytes = l.positions + up(kBackwardPositions * 4);
  return l;
}

}  // namespace attend::backward_layout
