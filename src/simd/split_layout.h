#pragma once
// Sizes that the split kernels share with the code that reserves their scratch memory.
#include <algorithm>
#include <cstdint>

#include "attend/simd/split.h"

namespace attend::split_layout {

inline constexpr int kGroupRows = 6;       // rows of a micro-kernel: 6 x 4 accumulators of the 32 registers
inline constexpr int kBlockRows = 24;      // rows whose scores are live at once: 24 x 512 x 4 = 49 KB of L2
inline constexpr int kMostBlockRows = 32;  // where products have blocks of their own
inline constexpr int kStripCols = kSplitPositions;
// Floats from row to row: not a power of two, so that a column of rows lies in different sets of the first cache.
inline constexpr int kStripStride = kStripCols + 16;

// Products in bf16 take elements in pairs: of a row of a query, and of a strip, where each key may stand alone.
inline constexpr int kMostWords = 512 / 2, kMostPairs = kStripCols;

struct Layout {
  int64_t strip, panels, values, positions, operands, rows, means, bytes;  // offsets
};

constexpr Layout layout(int64_t d, int64_t dv) {
  auto up = [](int64_t n) { return (n + 63) / 64 * 64; };
  Layout l{};
  l.panels = l.strip + up(kMostBlockRows * kStripStride * int64_t{4});
  // Two forms of keys in words, two in whole tiles of fours, or whole tiles of pairs.
  l.values = l.panels + up(std::max({d, int64_t{2}, (d + 63) / 64 * 32, (d + 31) / 32 * 16}) * kStripCols * 4);
  l.positions = l.values + up(kSplitPositions * padded_dv(dv) * 4);
  l.operands = l.positions + up(kStripCols * 4);
  l.rows = l.operands + up(kMostBlockRows * (kMostWords + kMostPairs) * int64_t{4});
  l.means = l.rows + up((2 * kMostPairs + 2) * static_cast<int64_t>(sizeof(void*)));
  l.bytes = l.means + up((8 * padded_dv(d) + 16 * d) * int64_t{4});  // see smoothing-inl.h
  return l;
}

}  // namespace attend::split_layout
