#pragma once
// The keys and values of one kv head as runs of memory, each key with a slot (where it lies) and a position (where its
// token stands in the text).
#include <cstdint>
#include <limits>
#include <span>

#include "attend/tensor/dtype.h"

namespace attend {

// One page, or a whole cache: `count` rows from `first_slot` on. Strides are in elements a row, in bytes where rows are
// quantised (attend/tensor/quantised_row.h).
struct KeyRun {
  const void* k = nullptr;
  const void* v = nullptr;
  int64_t k_stride = 0, v_stride = 0, first_slot = 0, count = 0;
};

// Runs are in order of slots and leave none out. Positions ascend strictly; none given means slot = position.
struct KeyView {
  std::span<const KeyRun> runs;
  DType k_type = DType::kF32, v_type = DType::kF32;
  std::span<const int32_t> position;

  int64_t count() const { return runs.empty() ? 0 : runs.back().first_slot + runs.back().count; }
};

// Half-open range of positions.
struct KeyRange {
  int64_t begin = 0, end = 0;
  constexpr bool operator==(const KeyRange&) const = default;
};
inline constexpr int64_t kNoEnd = std::numeric_limits<int64_t>::max();

}  // namespace attend
