#include "exact/block_jobs.h"

#include <utility>

#include "exact/slots.h"

namespace attend::exact {
namespace {

// Rows of a block share one packed copy of each split's keys: so many that packing takes below a tenth of the products,
// in whole groups of 6.
constexpr int64_t block_rows(Compute compute) {
  return compute == Compute::kF32 ? 288 : compute == Compute::kBF16 ? 576 : 432;
}
constexpr int64_t kGroupRows = 6;

}  // namespace

BlockJobs::BlockJobs(const Problem& problem, KeyRange range, const SplitKernels& kernels)
    : p_(problem), range_(range), kernels_(kernels) {
  tokens_ = std::max<int64_t>(1, block_rows(p_.options.compute) / p_.group / kGroupRows) * kGroupRows;
  tokens_ = std::min(tokens_, std::max<int64_t>(1, p_.queries));
}

Workspace BlockJobs::workspace(Scratch& scratch) const {
  Workspace w;
  w.carve(scratch.reserve(Workspace{}.carve(nullptr, tokens_, p_.group, p_.d, p_.dv)), tokens_, p_.group, p_.d, p_.dv);
  return w;
}

SlotRanges BlockJobs::slots_seen(const Block& block) const {
  return exact::slots_seen(p_, keys(block), block.batch, block.first, range_);
}

void BlockJobs::find_slots(const Block& block, Workspace& w) const {
  const bool alike = !p_.options.causal && p_.options.window == 0 && !p_.documents.data;  // all queries see the same
  for (int64_t t = 0; t < block.tokens; ++t) {
    w.slots[t] = alike && t > 0 ? w.slots[0] : slots_seen({block.batch, block.kv_head, block.first + t, 1});
    w.q_position[t] = static_cast<int32_t>(p_.position(block.batch, block.first + t));
  }
}

void BlockJobs::prepare(const Block& block, Workspace& w) const {
  find_slots(block, w);
  const float scale = p_.options.compute == Compute::kF32 ? p_.scale : 1.0f;
  const bool dense = p_.q.stride[2] == p_.d;
  w.queries = w.q;
  if (p_.options.compute != Compute::kF32 && dense && p_.group == 1) {
    w.queries = p_.q.at<float>({block.batch, block.kv_head, block.first});
    return;
  }
  for (int64_t g = 0; g < p_.group; ++g)
    for (int64_t t = 0; t < block.tokens; t += dense ? block.tokens : 1) {
      const float* from = p_.q.at<float>({block.batch, block.kv_head * p_.group + g, block.first + t});
      kernels_.scale(from, dense ? block.tokens * p_.d : p_.d, scale, w.q + (g * block.tokens + t) * p_.d);
    }
}

void BlockJobs::ask_for(const Block& block) const {
  constexpr int64_t kFewRows = 64, kLine = 64;
  const Keys& k = keys(block);
  if (block.tokens * p_.group > kFewRows || k.count() > kFewRows) return;
  // Rows that lie together are one.
  auto ask = [](const void* rows, int64_t count, int64_t stride, int64_t bytes) {
    if (stride == bytes) bytes *= std::exchange(count, 1);
    const char* row = static_cast<const char*>(rows);
    for (int64_t r = 0; r < count; ++r, row += stride)
      for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(row + i);
  };
  for (int64_t g = 0; g < p_.group; ++g)
    ask(p_.q.at<float>({block.batch, block.kv_head * p_.group + g, block.first}), block.tokens, p_.q.stride[2] * 4,
        p_.d * 4);
  auto ask_run = [&](const RowRun& rows, int64_t count, int64_t width) {
    ask(rows.data, count, rows.stride * size_of(rows.type), row_bytes(rows.type, width));
  };
  for (const KeyRun& run : k.runs()) {
    ask_run(run.keys(), run.count, p_.d);
    ask_run(run.values(), run.count, p_.dv);
  }
}

bool BlockJobs::reaches(const Block& block, const Workspace& w, const Split& split) const {
  const int64_t end = split.first_slot + split.cols;
  auto meets = [&](KeyRange r) { return r.begin < r.end && r.begin < end && split.first_slot < r.end; };
  return std::any_of(w.slots, w.slots + block.tokens, [&](const SlotRanges& s) { return meets(s.a) || meets(s.b); }) &&
         mask_reaches(block, w, keys(block).position(split.first_slot) / kSplitPositions);
}

bool BlockJobs::mask_reaches(const Block& block, const Workspace& w, int64_t split) const {
  for (int64_t g = 0; mask() && g < mask_heads(); ++g)
    if (exact::mask_reaches(*mask(), block.batch, block.kv_head * p_.group + g,
                            {w.q_position, static_cast<size_t>(block.tokens)}, split * kSplitPositions,
                            (split + 1) * kSplitPositions))
      return true;
  return !mask();
}

void BlockJobs::gather_mask(const Block& block, Workspace& w, const Split& split) const {
  for (int64_t g = 0; g < mask_heads(); ++g)
    for (int64_t t = 0; t < block.tokens; ++t)
      gather_mask_row(*mask(), keys(block), split, block.batch, block.kv_head * p_.group + g, w.q_position[t],
                      w.mask + (g * block.tokens + t) * kMaskWords);
}

SplitJob BlockJobs::job(const Block& block, Workspace& w, const Split& split) const {
  const Keys& k = keys(block);
  for (int64_t t = 0; t < block.tokens; ++t) w.visible[t] = columns_of(w.slots[t], split);
  if (mask()) gather_mask(block, w, split);
  const int64_t head = block.kv_head * p_.group;
  const float* bias = nullptr;
  if (p_.bias.data) bias = p_.bias.at<float>({block.batch, head, block.first, split.first_slot});
  return {
      .q = w.queries,
      .compute = p_.options.compute,
      .score_scale = p_.scale,
      .heads = static_cast<int>(p_.group),
      .tokens = static_cast<int>(block.tokens),
      .d = static_cast<int>(p_.d),
      .dv = static_cast<int>(p_.dv),
      .q_position = w.q_position,
      .runs = k.runs(split.first_slot, split.first_slot + split.cols),
      .first_slot = split.first_slot,
      .cols = split.cols,
      .k_position = k.positions(split.first_slot),
      .first_position = split.first_slot,
      .visible = w.visible,
      .mask = mask() ? w.mask : nullptr,
      .mask_head_stride = mask() && mask_heads() > 1 ? block.tokens * kMaskWords : 0,
      .softcap = p_.softcap,
      .bias = bias,
      .bias_head_stride = p_.bias.stride[1],
      .bias_token_stride = p_.bias.stride[2],
      .bias_col_stride = p_.bias.stride[3],
      .hook = p_.variant.score,
      .batch = static_cast<int>(block.batch),
      .first_head = static_cast<int>(head),
      .normalizer = p_.variant.normalizer,
      .weight = p_.variant.weight,
      .scratch = w.split,
  };
}

}  // namespace attend::exact
