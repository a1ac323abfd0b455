#include "attend/exact/weight_statistics.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "attend/simd/isa.h"
#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"
#include "exact/block_jobs.h"
#include "exact/keys_alone.h"
#include "exact/schedule.h"
#include "exact/tasks.h"

namespace attend {
namespace {

constexpr std::string_view kOp = "add_weights";

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

void check(const exact::Problem& p, const View& lse, const WeightPlaces& to) {
  if (!p.softmax() || p.variant.final_weight)
    throw Error(ErrorKind::kArgument, kOp, "variant", "", "must be a softmax of one pass");
  if (to.counts() && p.variant.mask)
    throw Error(ErrorKind::kArgument, kOp, "variant", "", "must have no mask where queries are counted");
  if (lse.type != DType::kF32 || lse.rank != 3 || lse.shape[0] != p.batch || lse.shape[1] != p.heads ||
      lse.shape[2] != p.queries)
    throw Error(ErrorKind::kArgument, kOp, "lse", to_string(lse),
                fmt::format("must be f32 [{}, {}, {}]", p.batch, p.heads, p.queries));
  if (static_cast<int64_t>(to.heads.size()) != p.batch * p.heads)
    throw Error(ErrorKind::kArgument, kOp, "places", std::to_string(to.heads.size()),
                fmt::format("must be {} places, one a query head", p.batch * p.heads));
  for (const KeyStatistics& head : to.heads)
    if (!head.sum != !to.heads[0].sum || !head.largest != !to.heads[0].largest || !head.times != !to.heads[0].times ||
        !head.newest != !to.heads[0].newest)
      throw Error(ErrorKind::kArgument, kOp, "places", "", "must want the same of all heads");
  if (!(to.attended >= 0))
    throw Error(ErrorKind::kArgument, kOp, "attended", fmt::format("{}", to.attended), "must be at least 0");
}

// f(of, to) for each statistic that is wanted.
template <class F>
void each(const KeyStatistics& of, const KeyStatistics& to, F f) {
  if (of.sum) f(of.sum, to.sum);
  if (of.largest) f(of.largest, to.largest);
  if (of.times) f(of.times, to.times);
  if (of.newest) f(of.newest, to.newest);
}

KeyStatistics from_slot(const KeyStatistics& of, int64_t slot) {
  return {of.sum ? of.sum + slot : nullptr, of.largest ? of.largest + slot : nullptr,
          of.times ? of.times + slot : nullptr, of.newest ? of.newest + slot : nullptr};
}

// The weight above which a query attends that sees these keys.
float attended_by(const exact::SlotRanges& seen, float attended) {
  const int64_t count =
      std::max<int64_t>(0, seen.a.end - seen.a.begin) + std::max<int64_t>(0, seen.b.end - seen.b.begin);
  return attended / static_cast<float>(std::max<int64_t>(1, count));
}

class Gatherer {
 public:
  Gatherer(const exact::Problem& p, KeyRange range, const View& lse, const WeightPlaces& to, Context& context)
      : p_(p),
        lse_(lse),
        to_(to),
        context_(context),
        kernels_(split_kernels(active_isa(context))),
        jobs_(p, range, kernels_),
        all_(p, {0, kNoEnd}, kernels_),
        strip_(p.group * kSplitPositions),
        columns_(context.threads * strip_ * 4 * static_cast<int64_t>(sizeof(float))) {
    const size_t threads = static_cast<size_t>(context.threads);
    if (context.scratch.size() < threads) context.scratch.resize(threads);
    for (size_t t = 0; t < threads; ++t) workspaces_.push_back(jobs_.workspace(context.scratch[t]));
  }

  // Scores are computed again.
  void run() {
    const std::vector<Task> tasks = tasks_of(p_);
    parallel_for(context_.threads, static_cast<int64_t>(tasks.size()), [&](int64_t index, int worker) {
      if (!context_.stop.stop_requested()) run(tasks[static_cast<size_t>(index)], worker);
    });
  }

 private:
  // Places for one split of a kv head's query heads, each with kSplitPositions columns.
  KeyStatistics own(int worker) const {
    float* floats = columns_.as<float>() + worker * 4 * strip_;
    auto* integers = reinterpret_cast<int32_t*>(floats + 2 * strip_);
    const KeyStatistics& wanted = to_.heads[0];
    return {wanted.sum ? floats : nullptr, wanted.largest ? floats + strip_ : nullptr,
            wanted.times ? integers : nullptr, wanted.newest ? integers + strip_ : nullptr};
  }

  void run(const Task& task, int worker) {
    exact::Workspace& w = workspaces_[static_cast<size_t>(worker)];
    const KeyStatistics columns = own(worker);
    auto place = [&](int64_t g) {
      return from_slot(to_.heads[static_cast<size_t>(task.batch * p_.heads + task.kv_head * p_.group + g)],
                       task.split.first_slot);
    };
    for (int64_t g = 0; g < p_.group; ++g)
      each(place(g), from_slot(columns, g * kSplitPositions), [&](auto* theirs, auto* ours) {
        std::fill_n(std::copy_n(theirs, task.split.cols, ours), kSplitPositions - task.split.cols, 0);
      });
    for (int64_t first = 0; first < p_.queries; first += jobs_.tokens()) {
      const Block block{task.batch, task.kv_head, first, std::min(jobs_.tokens(), p_.queries - first)};
      jobs_.prepare(block, w);
      if (!jobs_.reaches(block, w, task.split)) continue;
      SplitJob job = jobs_.job(block, w, task.split);
      float* attended = w.split_max;
      for (int64_t g = 0; g < p_.group; ++g)
        for (int64_t t = 0; t < block.tokens; ++t) {
          const int64_t row = g * block.tokens + t;
          w.given_max[row] = *lse_.at<float>({block.batch, block.kv_head * p_.group + g, first + t});
          attended[row] = attended_by(all_.slots_seen({block.batch, block.kv_head, first + t, 1}), to_.attended);
        }
      job.given_max = w.given_max;
      job.sums_only = true;
      job.statistics = &columns;
      job.attended = attended;
      job.max = w.max;
      job.sum = w.sum;
      job.acc = w.acc;
      job.acc_stride = padded_dv(p_.dv);
      kernels_.attend(job);
    }
    for (int64_t g = 0; g < p_.group; ++g)
      each(from_slot(columns, g * kSplitPositions), place(g),
           [&](const auto* ours, auto* theirs) { std::copy_n(ours, task.split.cols, theirs); });
  }

  const exact::Problem& p_;
  const View& lse_;
  const WeightPlaces& to_;
  Context& context_;
  const SplitKernels& kernels_;
  exact::BlockJobs jobs_, all_;
  int64_t strip_;
  Buffer columns_;
  std::vector<exact::Workspace> workspaces_;
};

// Queries that are worth keeping all scores of: a decoded token, or a few that were drafted.
bool keeps_scores(const exact::Problem& p, int64_t keys) {
  constexpr int64_t kMostQueries = 8, kMostBytes = int64_t{64} << 20;
  return p.queries <= kMostQueries && p.batch * p.heads * p.queries * keys * 4 <= kMostBytes && !p.variant.weight;
}

}  // namespace

void add_weights(const Qkv& qkv, const SoftmaxOptions& options, const View& lse, const WeightPlaces& to,
                 Context& context, const Variant& variant, KeyRange range) {
  const Qkv in = exact::keys_alone(qkv);
  const exact::Problem p = exact::check(in, options, kOp, variant);
  check(p, lse, to);
  context.throw_if_stopped();
  if (!to.heads.empty()) Gatherer(p, range, lse, to, context).run();
  context.throw_if_stopped();
}

void attend_and_add_weights(const Qkv& in, const SoftmaxOptions& options, const AttnOut& out, const WeightPlaces& to,
                            Context& context, const Variant& variant) {
  const exact::Problem p = exact::check(in, options, kOp, variant);
  exact::check_outputs(p, in, out, kOp);
  check(p, out.lse, to);
  int64_t keys = 0;
  for (const exact::Keys& own : p.keys) keys = std::max(keys, own.count());
  if (!keeps_scores(p, keys)) {
    exact::run(p, {0, kNoEnd}, {.out = &out}, context);
    add_weights(in, options, out.lse, to, context, variant);
    return;
  }
  const int64_t rows = p.batch * p.heads * p.queries;
  float* scores = exact::kept_floats(context, 0, rows * keys);
  std::fill_n(scores, rows * keys, -std::numeric_limits<float>::infinity());
  exact::run(p, {0, kNoEnd}, {.out = &out, .scores = scores, .score_stride = keys}, context);
  const SplitKernels& kernels = split_kernels(active_isa(context));
  const exact::BlockJobs jobs(p, {0, kNoEnd}, kernels);
  constexpr int64_t kWorthATask = 1 << 15;  // scores
  parallel_for(rows * keys < kWorthATask ? 1 : context.threads, p.batch * p.heads, [&](int64_t head, int) {
    const int64_t b = head / p.heads, h = head % p.heads;
    for (int64_t i = 0; i < p.queries; ++i) {
      const exact::SlotRanges seen = jobs.slots_seen({b, h / p.group, i, 1});
      kernels.gather(scores + (head * p.queries + i) * keys,
                     p.keys[static_cast<size_t>(b * p.kv_heads + h / p.group)].count(), *out.lse.at<float>({b, h, i}),
                     attended_by(seen, to.attended), static_cast<int32_t>(p.position(b, i)),
                     to.heads[static_cast<size_t>(head)]);
    }
  });
}

}  // namespace attend
