#include "attend/sparse/selected_keys.h"

#include <algorithm>
#include <cstring>

namespace attend {
namespace {

constexpr int64_t kShortRun = 64;  // rows on average, below which they are gathered

}  // namespace

void SelectedKeys::cut(const KeyView& keys, const Selection& selection, int64_t d, int64_t dv) {
  runs_.clear();
  int64_t slot = 0;
  auto run = keys.runs.begin();
  for (const KeyRange& range : selection.slots)
    for (int64_t at = range.begin; at < range.end;) {
      while (run->first_slot + run->count <= at) ++run;
      const int64_t first = at - run->first_slot, count = std::min(range.end - at, run->count - first);
      KeyRun part = *run;
      part.k = static_cast<const std::byte*>(run->k) + first * run->k_stride * size_of(keys.k_type);
      part.v = static_cast<const std::byte*>(run->v) + first * run->v_stride * size_of(keys.v_type);
      part.first_slot = slot;
      part.count = count;
      runs_.push_back(part);
      slot += count;
      at += count;
    }
  if (slot < kShortRun * static_cast<int64_t>(runs_.size())) gather(keys, slot, d, dv);
  view_ = {.runs = runs_, .k_type = keys.k_type, .v_type = keys.v_type, .position = {}};
}

// Single rows come from memory at random: asked for well ahead, they arrive at its bandwidth instead of its latency.
void SelectedKeys::gather(const KeyView& keys, int64_t count, int64_t d, int64_t dv) {
  constexpr int64_t kAhead = 24;  // rows
  constexpr int64_t kLine = 64;   // bytes
  const int64_t k_row = row_bytes(keys.k_type, d), v_row = row_bytes(keys.v_type, dv);
  if (rows_.bytes() < count * (k_row + v_row)) rows_ = Buffer(count * (k_row + v_row) * 5 / 4);
  row_.clear();
  for (const KeyRun& run : runs_)
    for (int64_t r = 0; r < run.count; ++r)
      row_.push_back({static_cast<const std::byte*>(run.k) + r * run.k_stride * size_of(keys.k_type),
                      static_cast<const std::byte*>(run.v) + r * run.v_stride * size_of(keys.v_type)});
  std::byte *k = rows_.data(), *v = k + count * k_row;
  for (int64_t i = 0; i < count; ++i, k += k_row, v += v_row) {
    const auto [later_k, later_v] = row_[static_cast<size_t>(std::min(i + kAhead, count - 1))];
    for (int64_t at = 0; at < k_row; at += kLine) __builtin_prefetch(later_k + at);
    for (int64_t at = 0; at < v_row; at += kLine) __builtin_prefetch(later_v + at);
    std::memcpy(k, row_[static_cast<size_t>(i)].first, static_cast<size_t>(k_row));
    std::memcpy(v, row_[static_cast<size_t>(i)].second, static_cast<size_t>(v_row));
  }
  runs_.assign(1, {.k = rows_.data(),
                   .v = rows_.data() + count * k_row,
                   .k_stride = k_row / size_of(keys.k_type),
                   .v_stride = v_row / size_of(keys.v_type),
                   .first_slot = 0,
                   .count = count});
}

}  // namespace attend
