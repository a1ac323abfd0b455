#include "attend/sparse/selected_keys.h"

#include <algorithm>
#include <cstring>

#include "attend/simd/dense.h"
#include "attend/simd/isa.h"
#include "attend/simd/key_rows.h"
#include "attend/tensor/context.h"

namespace attend {
namespace {

constexpr int64_t kShortRun = 256;     // rows on average, below which they are gathered
constexpr int64_t kScatteredRun = 64;  // and below which kernels that can read each row by itself

}  // namespace

void SelectedKeys::append_rows(const RowRun& rows, int64_t count, int64_t bytes, std::byte* to) {
  const bool dense = rows.stride * size_of(rows.type) == bytes;
  for (int64_t r = 0; r < count; r += dense ? count : 1)
    pieces_.push_back({static_cast<const std::byte*>(rows.row(r)), to + r * bytes, dense ? count * bytes : bytes});
}

// Copies pieces one after another, each line asked for kAhead lines before it is read.
void SelectedKeys::copy(std::span<const Piece> pieces) {
  constexpr int64_t kLine = 64;    // bytes
  constexpr int64_t kAhead = 128;  // lines
  auto later = pieces.begin();
  int64_t at = 0;
  auto fetch = [&] {
    if (later == pieces.end()) return;
    __builtin_prefetch(later->from + at);
    at += kLine;
    if (at >= later->bytes) ++later, at = 0;
  };
  for (int64_t i = 0; i < kAhead; ++i) fetch();
  for (const Piece& piece : pieces) {
    int64_t done = 0;
    for (; done + kLine <= piece.bytes; done += kLine) {
      fetch();
      std::memcpy(piece.to + done, piece.from + done, kLine);
    }
    if (done == piece.bytes) continue;
    fetch();
    std::memcpy(piece.to + done, piece.from + done, static_cast<size_t>(piece.bytes - done));
  }
}

SelectedKeys::SelectedKeys() : isa_(active_isa(Context(1))) {}

void SelectedKeys::cut(const KeyView& keys, const Selection& selection, int64_t d, int64_t dv, bool keep_positions,
                       int64_t rows) {
  runs_.clear();
  positions_.clear();
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
  const int64_t runs = static_cast<int64_t>(runs_.size());
  const bool in_place = slot < kScatteredRun * runs && uniform() &&
                        reads_scattered_rows(isa_, rows, runs_[0].k_type, runs_[0].v_type, d, dv);
  if (slot < kShortRun * runs && !in_place) gather(slot, d, dv);
  if (keep_positions)
    for (const KeyRange& range : selection.slots)
      for (int64_t at = range.begin; at < range.end; ++at)
        positions_.push_back(keys.position.empty() ? static_cast<int32_t>(at) : keys.position[static_cast<size_t>(at)]);
  view_ = {.runs = runs_, .position = positions_};
}

// Whether all is coded in one way.
bool SelectedKeys::uniform() const {
  const KeyRun& first = runs_.front();
  return std::all_of(runs_.begin(), runs_.end(), [&](const KeyRun& run) {
    return run.k_type == first.k_type && run.v_type == first.v_type && run.k_scale == first.k_scale;
  });
}

// Short runs come from memory at random: asked for well ahead, they arrive at its bandwidth instead of its latency.
void SelectedKeys::gather(int64_t count, int64_t d, int64_t dv) {
  // What is coded in several ways is read as f32.
  const KeyRun all = runs_.front();
  const bool alike = uniform();
  const DType k_type = alike ? all.k_type : DType::kF32, v_type = alike ? all.v_type : DType::kF32;
  const int64_t k_row = row_bytes(k_type, d), v_row = row_bytes(v_type, dv);
  if (rows_.bytes() < count * (k_row + v_row)) rows_ = Buffer(count * (k_row + v_row) * 5 / 4);
  std::byte *k = rows_.data(), *v = k + count * k_row;
  if (alike) {
    pieces_.clear();
    for (const KeyRun& run : runs_) {
      append_rows(run.keys(), run.count, k_row, k + run.first_slot * k_row);
      append_rows(run.values(), run.count, v_row, v + run.first_slot * v_row);
    }
    copy(pieces_);
  } else {
    const DenseKernels& kernels = dense_kernels(isa_);
    for (const KeyRun& run : runs_) {
      kernels.widen_run(run.keys(), run.count, d, reinterpret_cast<float*>(k) + run.first_slot * d, d);
      kernels.widen_run(run.values(), run.count, dv, reinterpret_cast<float*>(v) + run.first_slot * dv, dv);
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
                   .k_scale = alike ? all.k_scale : nullptr,
                   .k_offset = alike ? all.k_offset : nullptr});
}

}  // namespace attend
