#include "exact/schedule.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "attend/simd/isa.h"
#include "attend/simd/split.h"
#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"
#include "exact/block_jobs.h"

namespace attend::exact {
namespace {

class Scheduler {
 public:
  Scheduler(const Problem& problem, KeyRange range, const Destination& to, Context& context)
      : p_(problem),
        to_(to),
        context_(context),
        kernels_(split_kernels(active_isa(context))),
        jobs_(problem, range, kernels_),
        stride_(padded_dv(problem.dv)) {}

  void run() {
    if (p_.queries == 0 || p_.batch == 0 || p_.heads == 0) return;
    // Later queries see more keys under a causal rule: the largest blocks first.
    const int64_t tokens = jobs_.tokens();
    for (int64_t first = (p_.queries - 1) / tokens * tokens; first >= 0; first -= tokens)
      for (int64_t b = 0; b < p_.batch; ++b)
        for (int64_t h = 0; h < p_.kv_heads; ++h)
          blocks_.push_back({b, h, first, std::min(tokens, p_.queries - first)});
    const int threads = context_.threads;
    // One for each thread, one for partials that threads share.
    if (static_cast<int>(context_.scratch.size()) <= threads) context_.scratch.resize(static_cast<size_t>(threads) + 1);
    for (int t = 0; t < threads; ++t) workspaces_.push_back(jobs_.workspace(context_.scratch[static_cast<size_t>(t)]));
    if (threads > 1 && shares_splits()) {
      run_by_splits();
    } else {
      run_by_blocks();
    }
    context_.throw_if_stopped();
  }

 private:
  // Whether threads share out splits rather than blocks: where blocks are few, or where keys of different lengths leave
  // so much to one block that threads would wait for it. In the first case the unit of work is a split of 512 positions
  // for every thread, whatever batch, heads and lengths are (Sanovar et al. 2024, arXiv:2405.10480, section 4.2, there
  // with tiles in place of whole splits: those keep the bits the same).
  bool shares_splits() {
    const int64_t threads = context_.threads;
    if (static_cast<int64_t>(blocks_.size()) < 4 * threads) return true;
    const bool ragged =
        std::any_of(p_.lengths.begin(), p_.lengths.end(), [&](int64_t n) { return n != p_.lengths[0]; });
    if (!ragged) return false;
    std::vector<std::pair<int64_t, Block>> by_work;
    int64_t total = 0, largest = 0, rows = 0;
    for (const Block& block : blocks_) {
      jobs_.find_slots(block, workspaces_[0]);
      int64_t splits = 0;
      jobs_.each_split(block, workspaces_[0], [&](const Split&) { ++splits; });
      by_work.emplace_back(splits, block);
      total += splits;
      rows += splits * block.tokens * p_.group;
      largest = std::max(largest, splits);
    }
    std::stable_sort(by_work.begin(), by_work.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
    for (size_t i = 0; i < blocks_.size(); ++i) blocks_[i] = by_work[i].second;
    constexpr int64_t kMostBytes = int64_t{256} << 20;  // of partials at once
    return largest * threads * 4 > total && rows * (stride_ + 2) * 4 <= kMostBytes;
  }

  // A hook on final weights needs a first pass over the keys that finds what they are normalised by.
  enum class Pass { kOnly, kFirst, kSecond };

  struct Given {
    float *max, *inverse;
  };

  bool two_passes() const { return p_.variant.final_weight != nullptr; }

  void run_by_blocks() {
    const int64_t count = static_cast<int64_t>(blocks_.size());
    parallel_units(count, 64, [&](int64_t i, int worker) {
      const Block& block = blocks_[static_cast<size_t>(i)];
      Workspace& w = workspaces_[static_cast<size_t>(worker)];
      jobs_.prepare(block, w);
      if (i + 1 < count) jobs_.ask_for(blocks_[static_cast<size_t>(i + 1)]);
      const PartialRows whole{w.max, w.sum, w.acc, stride_};
      const Given given{w.given_max, w.given_inverse};
      if (two_passes()) {
        over_splits(block, w, whole, Pass::kFirst, given);
        settle(block, whole, given);
      }
      over_splits(block, w, whole, two_passes() ? Pass::kSecond : Pass::kOnly, given);
      deliver(block, whole);
    });
  }

  // parallel_for() where a thread takes neighbours, up to `units` times: what it asks for ahead is then its own, and
  // threads meet seldom over which is next.
  template <class F>
  void parallel_units(int64_t count, int64_t units, F f) {
    const int64_t unit = std::max<int64_t>(1, count / (units * context_.threads));
    parallel_for(context_.threads, (count + unit - 1) / unit, [&](int64_t u, int worker) {
      for (int64_t i = u * unit; i < std::min(count, (u + 1) * unit); ++i) {
        if (context_.stop.stop_requested()) return;
        f(i, worker);
      }
    });
  }

  void over_splits(const Block& block, Workspace& w, const PartialRows& whole, Pass pass, const Given& given) const {
    const PartialRows part{w.split_max, w.split_sum, w.split_acc, stride_};
    const int64_t rows = block.tokens * p_.group;
    bool first = true;
    jobs_.each_split(block, w, [&](const Split& split) {
      attend(block, w, split, first ? whole : part, pass, given);
      if (!first) kernels_.fold(whole, part, rows, p_.dv);
      first = false;
    });
    if (first) make_empty(whole, rows);
  }

  // Few blocks: threads share out the splits of each, then fold in ascending order.
  void run_by_splits() {
    struct Task {
      int64_t block;
      Split split;
      int64_t first_row;  // of its partial
    };
    std::vector<Task> tasks;
    std::vector<size_t> first_task(blocks_.size() + 1, 0);
    std::vector<int64_t> first_row(blocks_.size(), 0);  // of a block among all rows
    int64_t rows = 0, block_rows = 0;
    for (size_t i = 0; i < blocks_.size(); ++i) {
      first_row[i] = block_rows;
      block_rows += blocks_[i].tokens * p_.group;
      jobs_.find_slots(blocks_[i], workspaces_[0]);
      jobs_.each_split(blocks_[i], workspaces_[0], [&](const Split& split) {
        tasks.push_back({static_cast<int64_t>(i), split, rows});
        rows += blocks_[i].tokens * p_.group;
      });
      first_task[i + 1] = tasks.size();
    }
    float *max, *sum, *acc, *given_max, *given_inverse;
    auto carve = [&](std::byte* base) {
      Carver carver(base);
      carver.take(max, rows), carver.take(sum, rows), carver.take(acc, rows * stride_);
      carver.take(given_max, block_rows), carver.take(given_inverse, block_rows);
      return carver.bytes();
    };
    carve(context_.scratch[workspaces_.size()].reserve(carve(nullptr)));
    auto partial = [&](int64_t row) { return PartialRows{max + row, sum + row, acc + row * stride_, stride_}; };
    auto given = [&](int64_t block) {
      const int64_t row = first_row[static_cast<size_t>(block)];
      return Given{given_max + row, given_inverse + row};
    };
    std::vector<int64_t> prepared(workspaces_.size(), -1);
    auto pass_over = [&](Pass pass) {
      parallel_units(static_cast<int64_t>(tasks.size()), 16, [&](int64_t i, int worker) {
        Workspace& w = workspaces_[static_cast<size_t>(worker)];
        const Task& task = tasks[static_cast<size_t>(i)];
        const Block& block = blocks_[static_cast<size_t>(task.block)];
        if (prepared[static_cast<size_t>(worker)] != task.block) jobs_.prepare(block, w);
        prepared[static_cast<size_t>(worker)] = task.block;
        attend(block, w, task.split, partial(task.first_row), pass, given(task.block));
      });
      parallel_for(context_.threads, static_cast<int64_t>(blocks_.size()), [&](int64_t i, int worker) {
        if (context_.stop.stop_requested()) return;
        Workspace& w = workspaces_[static_cast<size_t>(worker)];
        const Block& block = blocks_[static_cast<size_t>(i)];
        const size_t first = first_task[static_cast<size_t>(i)], last = first_task[static_cast<size_t>(i) + 1];
        PartialRows whole{w.max, w.sum, w.acc, stride_};
        if (first == last) {
          make_empty(whole, block.tokens * p_.group);
        } else {
          whole = partial(tasks[first].first_row);
        }
        for (size_t t = first + 1; t < last; ++t)
          kernels_.fold(whole, partial(tasks[t].first_row), block.tokens * p_.group, p_.dv);
        if (pass == Pass::kFirst) {
          settle(block, whole, given(i));
        } else {
          deliver(block, whole);
        }
      });
    };
    if (two_passes()) pass_over(Pass::kFirst);
    pass_over(two_passes() ? Pass::kSecond : Pass::kOnly);
  }

  void attend(const Block& block, Workspace& w, const Split& split, const PartialRows& to, Pass pass,
              const Given& given) const {
    SplitJob job = jobs_.job(block, w, split);
    if (pass == Pass::kSecond) {
      if (p_.softmax()) job.given_max = given.max;
      job.given_inverse = given.inverse;
      job.final_hook = p_.variant.final_weight;
    }
    job.sums_only = pass == Pass::kFirst || (to_.out && !to_.out->out.data);
    if (to_.scores) {
      const int64_t row = (block.batch * p_.heads + block.kv_head * p_.group) * p_.queries + block.first;
      job.scores = to_.scores + row * to_.score_stride + split.first_slot;
      job.scores_head_stride = p_.queries * to_.score_stride;
      job.scores_token_stride = to_.score_stride;
    }
    job.max = to.max;
    job.sum = to.sum;
    job.acc = to.acc;
    job.acc_stride = to.acc_stride;
    kernels_.attend(job);
  }

  void make_empty(const PartialRows& rows, int64_t count) const {
    std::fill_n(rows.max, count, -std::numeric_limits<float>::infinity());
    std::fill_n(rows.sum, count, 0.0f);
    std::fill_n(rows.acc, count * stride_, 0.0f);
  }

  // What the second pass normalises by; lse, if wanted, is that of the first.
  void settle(const Block& block, const PartialRows& rows, const Given& given) const {
    each_row(block, [&](int64_t row, int64_t head, int64_t i) {
      const float* sink = sink_of(head);
      float top = rows.max[row], sum = rows.sum[row];
      const bool empty = top == -std::numeric_limits<float>::infinity();
      if (sink && !empty) {
        const float higher = std::max(top, *sink);
        sum = sum * std::exp(top - higher) + std::exp(*sink - higher);
        top = higher;
      }
      given.max[row] = top;
      given.inverse[row] = empty || sum == 0 ? 0 : 1 / sum;
      if (float* lse = lse_of(block, head, i)) kernels_.finish(rows, row, sink, p_.dv, nullptr, lse);
    });
  }

  void deliver(const Block& block, const PartialRows& rows) const {
    const bool divide = two_passes() ? p_.variant.renormalise : p_.variant.normalizer != Normalizer::kNone;
    const bool plain = p_.softmax() && !two_passes();
    const bool with_out = to_.out && to_.out->out.data, with_lse = to_.out && to_.out->lse.data && !two_passes();
    // Of the first token of a head; others follow at strides.
    float *out = nullptr, *lse = nullptr;
    each_row(block, [&](int64_t row, int64_t head, int64_t i) {
      if (to_.partial) {
        const int64_t to = (block.batch * p_.heads + head) * p_.queries + i;
        to_.partial->max()[to] = rows.max[row];
        to_.partial->sum()[to] = rows.sum[row];
        std::copy_n(rows.acc + row * stride_, stride_, to_.partial->acc() + to * to_.partial->acc_stride());
        return;
      }
      if (!plain && (!divide || rows.sum[row] == 0)) rows.sum[row] = 1;
      if (i == block.first) {
        out = with_out ? to_.out->out.at<float>({block.batch, head, i}) : nullptr;
        lse = with_lse ? lse_of(block, head, i) : nullptr;
      } else {
        if (out) out += to_.out->out.stride[2];
        if (lse) lse += to_.out->lse.stride[2];
      }
      kernels_.finish(rows, row, plain ? sink_of(head) : nullptr, p_.dv, out, lse);
    });
  }

  template <class F>
  void each_row(const Block& block, F f) const {
    for (int64_t g = 0; g < p_.group; ++g)
      for (int64_t t = 0; t < block.tokens; ++t) f(g * block.tokens + t, block.kv_head * p_.group + g, block.first + t);
  }
  const float* sink_of(int64_t head) const { return p_.sink_logits.data ? p_.sink_logits.at<float>({head}) : nullptr; }
  float* lse_of(const Block& block, int64_t head, int64_t i) const {
    return to_.out->lse.data ? to_.out->lse.at<float>({block.batch, head, i}) : nullptr;
  }

  const Problem& p_;
  const Destination& to_;
  Context& context_;
  const SplitKernels& kernels_;
  BlockJobs jobs_;
  int64_t stride_;
  std::vector<Block> blocks_;
  std::vector<Workspace> workspaces_;
};

}  // namespace

void run(const Problem& problem, KeyRange range, const Destination& to, Context& context) {
  context.throw_if_stopped();
  Scheduler(problem, range, to, context).run();
}

}  // namespace attend::exact
