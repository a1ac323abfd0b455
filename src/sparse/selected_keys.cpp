#include "attend/sparse/selected_keys.h"

#include <algorithm>
#include <cstring>

#include "attend/simd/dense.h"
#include "attend/simd/isa.h"
#include "attend/tensor/context.h"

namespace attend {
namespace {

constexpr int64_t kShortRun = 64;  // rows on average, below which they are gathered

}  // namespace

SelectedKeys::SelectedKeys() : isa_(active_isa(Context(1))) {}

void SelectedKeys::cut(const KeyView& keys, const Selection& selection, int64_t d, int64_t dv) {
  runs_.clear();
  int64_t slot = 0;
  auto run = keys.runs.begin();
  for (const KeyRange& range : selection.slots)
    for (int64_t at = range.begin; at < range.end;) {
      while (run->first_slot + run->count <= at) ++run;
      const int64_t first = at - run->first_slot, count = std::min(range.end - at, run->count - first);
      runs_.push_back(run->part(first, count));
      runs_.back().first_slot = slot;
      slot += count;
      at += count;
    }
  if (slot < kShortRun * static_cast<int64_t>(runs_.size())) gather(slot, d, dv);
  view_ = {.runs = runs_, .position = {}};
}

// Single rows come from memory at random: asked for well ahead, they arrive at its bandwidth instead of its latency.
void SelectedKeys::gather(int64_t count, int64_t d, int64_t dv) {
  constexpr int64_t kAhead = 24;  // rows
  constexpr int64_t kLine = 64;   // bytes
  const DenseKernels& kernels = dense_kernels(isa_);
  // What is coded in several ways is read as f32.
  const KeyRun all = runs_.front();
  const bool uniform = std::all_of(runs_.begin(), runs_.end(), [&](const KeyRun& run) {
    return run.k_type == all.k_type && run.v_type == all.v_type && run.k_scale == all.k_scale;
  });
  const DType k_type = uniform ? all.k_type : DType::kF32, v_type = uniform ? all.v_type : DType::kF32;
  const int64_t k_row = row_bytes(k_type, d), v_row = row_bytes(v_type, dv);
  if (rows_.bytes() < count * (k_row + v_row)) rows_ = Buffer(count * (k_row + v_row) * 5 / 4);
  row_.clear();
  for (const KeyRun& run : runs_)
    for (int64_t r = 0; r < run.count; ++r) row_.push_back({run.keys().from(r), run.values().from(r)});
  std::byte *k = rows_.data(), *v = k + count * k_row;
  for (int64_t i = 0; i < count; ++i, k += k_row, v += v_row) {
    const auto& [later_k, later_v] = row_[static_cast<size_t>(std::min(i + kAhead, count - 1))];
    const auto fetch = [](const RowRun& row, int64_t width) {
      const auto* from = static_cast<const std::byte*>(row.data);
      for (int64_t at = 0; at < row_bytes(row.type, width); at += kLine) __builtin_prefetch(from + at);
    };
    fetch(later_k, d), fetch(later_v, dv);
    const auto& [own_k, own_v] = row_[static_cast<size_t>(i)];
    if (uniform) {
      std::memcpy(k, own_k.data, static_cast<size_t>(k_row));
      std::memcpy(v, own_v.data, static_cast<size_t>(v_row));
    } else {
      kernels.widen_run(own_k, 1, d, reinterpret_cast<float*>(k), 0);
      kernels.widen_run(own_v, 1, dv, reinterpret_cast<float*>(v), 0);
    }
  }
  runs_.assign(1, {.k = rows_.data(),
                   .v = rows_.data() + count * k_row,
                   .k_stride = k_row / size_of(k_type),
                   .v_stride = v_row / size_of(v_type),
                   .first_slot = 0,
                   .count = count,
                   .k_type = k_type,
                   .v_type = v_type,
                   .k_scale = uniform ? all.k_scale : nullptr,
                   .k_offset = uniform ? all.k_offset : nullptr});
}

}  // namespace attend
