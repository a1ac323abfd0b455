#include "attend/exact/weight_sums.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "attend/simd/isa.h"
#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"
#include "exact/block_jobs.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "weight_sums";

using exact::Block;
using exact::Split;

// A task is one split of one kv head's keys; it takes all queries, in ascending order.
struct Task {
  int64_t batch, kv_head;
  Split split;
};

std::vector<Task> tasks_of(const exact::Problem& p) {
  std::vector<Task> tasks;
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t h = 0; h < p.kv_heads; ++h) {
      const exact::Keys& keys = p.keys[static_cast<size_t>(b * p.kv_heads + h)];
      const int64_t end = keys.lower_slot(p.lengths[static_cast<size_t>(b)]);
      for (int64_t slot = 0; slot < end;) {
        Split split = exact::BlockJobs::split_at(keys, slot);
        split.cols = static_cast<int>(std::min<int64_t>(split.cols, end - split.first_slot));
        tasks.push_back({b, h, split});
        slot = split.first_slot + split.cols;
      }
    }
  return tasks;
}

}  // namespace

void add_weight_sums(const Qkv& qkv, const SoftmaxOptions& options, const View& lse, std::span<float* const> sums,
                     Context& context, const Variant& variant) {
  Qkv in = qkv;
  // Values are not read: any width that their rows may have.
  if (!in.keys.empty()) in.dv = is_quantised(in.keys.front().v_type) ? kQuantisedBlock : 1;
  const exact::Problem p = exact::check(in, options, kOp, variant);
  if (!p.softmax() || variant.final_weight)
    throw Error(ErrorKind::kArgument, kOp, "variant", "", "must be a softmax of one pass");
  if (lse.type != DType::kF32 || lse.rank != 3 || lse.shape[0] != p.batch || lse.shape[1] != p.heads ||
      lse.shape[2] != p.queries)
    throw Error(ErrorKind::kArgument, kOp, "lse", to_string(lse),
                fmt::format("must be f32 [{}, {}, {}]", p.batch, p.heads, p.queries));
  if (static_cast<int64_t>(sums.size()) != p.batch * p.heads ||
      std::any_of(sums.begin(), sums.end(), [](const float* s) { return s == nullptr; }))
    throw Error(ErrorKind::kArgument, kOp, "sums", std::to_string(sums.size()),
                fmt::format("must be {} places, one a query head", p.batch * p.heads));
  context.throw_if_stopped();

  const SplitKernels& kernels = split_kernels(active_isa(context));
  const exact::BlockJobs jobs(p, {0, kNoEnd}, kernels);
  const size_t threads = static_cast<size_t>(context.threads);
  if (context.scratch.size() < threads) context.scratch.resize(threads);
  std::vector<exact::Workspace> workspaces;
  for (size_t t = 0; t < threads; ++t) workspaces.push_back(jobs.workspace(context.scratch[t]));
  Buffer columns(static_cast<int64_t>(threads) * p.group * kSplitPositions * static_cast<int64_t>(sizeof(float)));

  const std::vector<Task> tasks = tasks_of(p);
  parallel_for(context.threads, static_cast<int64_t>(tasks.size()), [&](int64_t index, int worker) {
    if (context.stop.stop_requested()) return;
    const Task& task = tasks[static_cast<size_t>(index)];
    exact::Workspace& w = workspaces[static_cast<size_t>(worker)];
    float* own = columns.as<float>() + worker * p.group * kSplitPositions;
    auto place = [&](int64_t g) {
      return sums[static_cast<size_t>(task.batch * p.heads + task.kv_head * p.group + g)] + task.split.first_slot;
    };
    std::fill_n(own, p.group * kSplitPositions, 0.0f);
    for (int64_t g = 0; g < p.group; ++g) std::copy_n(place(g), task.split.cols, own + g * kSplitPositions);
    for (int64_t first = 0; first < p.queries; first += jobs.tokens()) {
      const Block block{task.batch, task.kv_head, first, std::min(jobs.tokens(), p.queries - first)};
      jobs.prepare(block, w);
      if (!jobs.reaches(block, w, task.split)) continue;
      SplitJob job = jobs.job(block, w, task.split);
      for (int64_t g = 0; g < p.group; ++g)
        for (int64_t t = 0; t < block.tokens; ++t)
          w.given_max[g * block.tokens + t] = *lse.at<float>({block.batch, block.kv_head * p.group + g, first + t});
      job.given_max = w.given_max;
      job.sums_only = true;
      job.column_sums = own;
      job.max = w.max;
      job.sum = w.sum;
      job.acc = w.acc;
      job.acc_stride = padded_dv(p.dv);
      kernels.attend(job);
    }
    for (int64_t g = 0; g < p.group; ++g) std::copy_n(own + g * kSplitPositions, task.split.cols, place(g));
  });
  context.throw_if_stopped();
}

}  // namespace attend
