#pragma once
// The keys and values of one kv head as runs of memory, each key with a slot (where it lies) and a position (where its
// token stands in the text).
#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>

#include "attend/tensor/dtype.h"

namespace attend {

// Rows of keys, or of values, of one type. Strides are in elements a row, in bytes where rows are quantised
// (attend/tensor/quantised_row.h).
struct RowRun {
  const void* data = nullptr;
  int64_t stride = 0;
  DType type = DType::kF32;
  const F16 *scale = nullptr, *offset = nullptr;  // of each channel, where the type is by channel

  const void* row(int64_t r) const { return static_cast<const char*>(data) + r * stride * size_of(type); }
  RowRun from(int64_t r) const { return {row(r), stride, type, scale, offset}; }
};

// One page, or a whole cache, or what is coded in one way: `count` rows from `first_slot` on.
struct KeyRun {
  const void* k = nullptr;
  const void* v = nullptr;
  int64_t k_stride = 0, v_stride = 0, first_slot = 0, count = 0;
  DType k_type = DType::kF32, v_type = DType::kF32;
  const F16 *k_scale = nullptr, *k_offset = nullptr;  // [D] each, of keys by channel: all of a run have the same

  RowRun keys() const { return {k, k_stride, k_type, k_scale, k_offset}; }
  RowRun values() const { return {v, v_stride, v_type}; }
  // The `rows` from row r on.
  KeyRun part(int64_t r, int64_t rows) const {
    KeyRun run = *this;
    run.k = keys().row(r);
    run.v = values().row(r);
    run.first_slot += r;
    run.count = rows;
    return run;
  }
};

// Runs are in order of slots and leave none out. Positions ascend strictly; none given means slot = position.
struct KeyView {
  std::span<const KeyRun> runs;
  std::span<const int32_t> position;

  int64_t count() const { return runs.empty() ? 0 : runs.back().first_slot + runs.back().count; }
};

// Half-open range of positions.
struct KeyRange {
  int64_t begin = 0, end = 0;
  constexpr bool operator==(const KeyRange&) const = default;
};
inline constexpr int64_t kNoEnd = std::numeric_limits<int64_t>::max();

// What is read of the keys and values of these slots, with the scales and offsets of channels once a group.
inline int64_t bytes_of(const KeyView& keys, KeyRange slots, int64_t d, int64_t dv) {
  int64_t bytes = 0;
  const F16* group = nullptr;
  for (const KeyRun& run : keys.runs) {
    const int64_t rows = std::min(slots.end, run.first_slot + run.count) - std::max(slots.begin, run.first_slot);
    if (rows <= 0) continue;
    bytes += rows * (row_bytes(run.k_type, d) + row_bytes(run.v_type, dv));
    if (is_by_channel(run.k_type) && run.k_scale != group) bytes += 4 * d;
    group = run.k_scale;
  }
  return bytes;
}

}  // namespace attend
