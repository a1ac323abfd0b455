#include "exact/schedule.h"

#include <algorithm>
#include <atomic>

#include "attend/simd/isa.h"
#include "attend/simd/split.h"
#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"

namespace attend::exact {
namespace {

// Rows of a block share one packed copy of each split's keys. 144 rows keep packing below a tenth of the products and
// are whole groups of 6.
constexpr int64_t kBlockRows = 144;
constexpr int64_t kGroupRows = 6;

struct Block {
  int64_t batch, kv_head, first, tokens;  // queries [first, first + tokens)
};

// Consecutive slots inside one split of 512 positions.
struct Split {
  int64_t first_slot;
  int cols;
};

struct SlotRanges {
  KeyRange a, b;
};

int64_t align64(int64_t n) {
  return (n + 63) / 64 * 64;
}

// What one thread needs for one block, carved out of its scratch memory.
struct Workspace {
  float *q, *max, *sum, *acc, *split_max, *split_sum, *split_acc;
  int32_t* q_position;
  SlotRanges* slots;      // [tokens], over the whole view
  ColumnRanges* visible;  // [tokens], of the current split
  std::byte* split;

  static int64_t bytes(int64_t tokens, int64_t group, int64_t d, int64_t dv) {
    Workspace w{};
    return w.carve(nullptr, tokens, group, d, dv);
  }
  int64_t carve(std::byte* base, int64_t tokens, int64_t group, int64_t d, int64_t dv) {
    int64_t at = 0;
    auto take = [&](auto*& pointer, int64_t count) {
      using T = std::remove_reference_t<decltype(*pointer)>;
      pointer = base ? reinterpret_cast<T*>(base + at) : nullptr;
      at += align64(count * static_cast<int64_t>(sizeof(T)));
    };
    const int64_t rows = tokens * group;
    take(q, rows * d);
    for (float** p : {&max, &sum, &split_max, &split_sum}) take(*p, rows);
    for (float** p : {&acc, &split_acc}) take(*p, rows * padded_dv(dv));
    take(q_position, tokens);
    take(slots, tokens);
    take(visible, tokens);
    take(split, split_scratch_bytes(d, dv));
    return at;
  }
};

class Scheduler {
 public:
  Scheduler(const Problem& problem, KeyRange range, const ScoreHook* hook, const Destination& to, Context& context)
      : p_(problem),
        range_(range),
        hook_(hook),
        to_(to),
        context_(context),
        kernels_(split_kernels(active_isa(context))),
        stride_(padded_dv(problem.dv)) {
    tokens_ = std::max<int64_t>(1, kBlockRows / p_.group / kGroupRows) * kGroupRows;
    tokens_ = std::min(tokens_, std::max<int64_t>(1, p_.queries));
  }

  void run() {
    if (p_.queries == 0 || p_.batch == 0 || p_.heads == 0) return;
    // Later queries see more keys under a causal rule: the largest blocks first.
    for (int64_t first = (p_.queries - 1) / tokens_ * tokens_; first >= 0; first -= tokens_)
      for (int64_t b = 0; b < p_.batch; ++b)
        for (int64_t h = 0; h < p_.kv_heads; ++h)
          blocks_.push_back({b, h, first, std::min(tokens_, p_.queries - first)});
    const int threads = context_.threads;
    // One for each thread, one for partials that threads share.
    if (static_cast<int>(context_.scratch.size()) <= threads) context_.scratch.resize(static_cast<size_t>(threads) + 1);
    const int64_t bytes = Workspace::bytes(tokens_, p_.group, p_.d, p_.dv);
    for (int t = 0; t < threads; ++t) {
      Workspace w;
      w.carve(context_.scratch[static_cast<size_t>(t)].reserve(bytes), tokens_, p_.group, p_.d, p_.dv);
      workspaces_.push_back(w);
    }
    if (threads > 1 && static_cast<int>(blocks_.size()) < 4 * threads) {
      run_by_splits();
    } else {
      run_by_blocks();
    }
    context_.throw_if_stopped();
  }

 private:
  void run_by_blocks() {
    const int64_t count = static_cast<int64_t>(blocks_.size());
    parallel_for(context_.threads, count, [&](int64_t i, int worker) {
      if (context_.stop.stop_requested()) return;
      const Block& block = blocks_[static_cast<size_t>(i)];
      Workspace& w = workspaces_[static_cast<size_t>(worker)];
      prepare(block, w);
      const int64_t rows = block.tokens * p_.group;
      const PartialRows whole{w.max, w.sum, w.acc, stride_}, part{w.split_max, w.split_sum, w.split_acc, stride_};
      bool first = true;
      each_split(block, w, [&](const Split& split) {
        attend(block, w, split, first ? whole : part);
        if (!first) kernels_.fold(whole, part, rows, p_.dv);
        first = false;
      });
      if (first) make_empty(whole, rows);
      deliver(block, whole);
    });
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
    int64_t rows = 0;
    for (size_t i = 0; i < blocks_.size(); ++i) {
      find_slots(blocks_[i], workspaces_[0]);
      each_split(blocks_[i], workspaces_[0], [&](const Split& split) {
        tasks.push_back({static_cast<int64_t>(i), split, rows});
        rows += blocks_[i].tokens * p_.group;
      });
      first_task[i + 1] = tasks.size();
    }
    const int64_t scalars = align64(rows * 4) / 4;
    float* base =
        reinterpret_cast<float*>(context_.scratch[workspaces_.size()].reserve((2 * scalars + rows * stride_ + 16) * 4));
    auto partial = [&](int64_t row) {
      return PartialRows{base + row, base + scalars + row, base + 2 * scalars + row * stride_, stride_};
    };
    const int64_t task_count = static_cast<int64_t>(tasks.size()), block_count = static_cast<int64_t>(blocks_.size());
    std::vector<int64_t> prepared(workspaces_.size(), -1);
    parallel_for(context_.threads, task_count, [&](int64_t i, int worker) {
      if (context_.stop.stop_requested()) return;
      Workspace& w = workspaces_[static_cast<size_t>(worker)];
      const Task& task = tasks[static_cast<size_t>(i)];
      const Block& block = blocks_[static_cast<size_t>(task.block)];
      if (prepared[static_cast<size_t>(worker)] != task.block) prepare(block, w);
      prepared[static_cast<size_t>(worker)] = task.block;
      attend(block, w, task.split, partial(task.first_row));
    });
    parallel_for(context_.threads, block_count, [&](int64_t i, int worker) {
      if (context_.stop.stop_requested()) return;
      Workspace& w = workspaces_[static_cast<size_t>(worker)];
      const Block& block = blocks_[static_cast<size_t>(i)];
      const int64_t block_rows = block.tokens * p_.group;
      const size_t first = first_task[static_cast<size_t>(i)], last = first_task[static_cast<size_t>(i) + 1];
      PartialRows whole{w.max, w.sum, w.acc, stride_};
      if (first == last) {
        make_empty(whole, block_rows);
      } else {
        whole = partial(tasks[first].first_row);
      }
      for (size_t t = first + 1; t < last; ++t) kernels_.fold(whole, partial(tasks[t].first_row), block_rows, p_.dv);
      deliver(block, whole);
    });
  }

  const Keys& keys(const Block& block) const {
    return p_.keys[static_cast<size_t>(block.batch * p_.kv_heads + block.kv_head)];
  }

  void find_slots(const Block& block, Workspace& w) const {
    const Keys& k = keys(block);
    auto to_slots = [&](KeyRange r) {
      r = clip(r, range_);
      return r.begin < r.end ? KeyRange{k.lower_slot(r.begin), k.lower_slot(r.end)} : KeyRange{};
    };
    for (int64_t t = 0; t < block.tokens; ++t) {
      const int64_t position = p_.position(block.batch, block.first + t);
      const Visible seen = visible_from(position, p_.options, p_.document(block.batch, position));
      w.slots[t] = {to_slots(seen.a), to_slots(seen.b)};
      w.q_position[t] = static_cast<int32_t>(position);
    }
  }

  void prepare(const Block& block, Workspace& w) const {
    find_slots(block, w);
    for (int64_t g = 0; g < p_.group; ++g)
      for (int64_t t = 0; t < block.tokens; ++t) {
        const float* from = p_.q.at<float>({block.batch, block.kv_head * p_.group + g, block.first + t});
        float* to = w.q + (g * block.tokens + t) * p_.d;
        for (int64_t i = 0; i < p_.d; ++i) to[i] = from[i] * p_.scale;
      }
  }

  // Splits of which some query of the block sees a key, ascending.
  template <class F>
  void each_split(const Block& block, const Workspace& w, F f) const {
    const Keys& k = keys(block);
    KeyRange a{kNoEnd, 0}, b{kNoEnd, 0};
    auto widen = [](KeyRange& hull, KeyRange r) {
      if (r.begin < r.end) hull = {std::min(hull.begin, r.begin), std::max(hull.end, r.end)};
    };
    for (int64_t t = 0; t < block.tokens; ++t) widen(a, w.slots[t].a), widen(b, w.slots[t].b);
    int64_t slot = std::min(a.begin, b.begin);
    const int64_t end = std::max(a.end, b.end);
    while (slot < end) {
      const int64_t split = k.position(slot) / kSplitPositions;
      const int64_t first = k.lower_slot(split * kSplitPositions), last = k.lower_slot((split + 1) * kSplitPositions);
      if ((a.begin < last && first < a.end) || (b.begin < last && first < b.end))
        f(Split{first, static_cast<int>(last - first)});
      slot = last;
      if (slot >= a.end && slot < b.begin && b.begin < b.end) slot = b.begin;
    }
  }

  void attend(const Block& block, Workspace& w, const Split& split, const PartialRows& to) const {
    const Keys& k = keys(block);
    auto columns = [&](KeyRange r, int32_t& begin, int32_t& end) {
      begin = static_cast<int32_t>(std::clamp<int64_t>(r.begin - split.first_slot, 0, split.cols));
      end = static_cast<int32_t>(std::clamp<int64_t>(r.end - split.first_slot, 0, split.cols));
    };
    for (int64_t t = 0; t < block.tokens; ++t) {
      columns(w.slots[t].a, w.visible[t].a0, w.visible[t].a1);
      columns(w.slots[t].b, w.visible[t].b0, w.visible[t].b1);
    }
    const int64_t head = block.kv_head * p_.group;
    const float* bias = nullptr;
    if (p_.bias.data) bias = p_.bias.at<float>({block.batch, head, block.first, split.first_slot});
    const SplitJob job{
        .q = w.q,
        .heads = static_cast<int>(p_.group),
        .tokens = static_cast<int>(block.tokens),
        .d = static_cast<int>(p_.d),
        .dv = static_cast<int>(p_.dv),
        .q_position = w.q_position,
        .runs = k.runs(),
        .k_type = k.k_type(),
        .v_type = k.v_type(),
        .first_slot = split.first_slot,
        .cols = split.cols,
        .k_position = k.positions(split.first_slot),
        .first_position = split.first_slot,
        .visible = w.visible,
        .softcap = p_.softcap,
        .bias = bias,
        .bias_head_stride = p_.bias.stride[1],
        .bias_token_stride = p_.bias.stride[2],
        .bias_col_stride = p_.bias.stride[3],
        .hook = hook_,
        .batch = static_cast<int>(block.batch),
        .first_head = static_cast<int>(head),
        .max = to.max,
        .sum = to.sum,
        .acc = to.acc,
        .acc_stride = to.acc_stride,
        .scratch = w.split,
    };
    kernels_.attend(job);
  }

  void make_empty(const PartialRows& rows, int64_t count) const {
    std::fill_n(rows.max, count, -std::numeric_limits<float>::infinity());
    std::fill_n(rows.sum, count, 0.0f);
    std::fill_n(rows.acc, count * stride_, 0.0f);
  }

  void deliver(const Block& block, const PartialRows& rows) const {
    for (int64_t g = 0; g < p_.group; ++g)
      for (int64_t t = 0; t < block.tokens; ++t) {
        const int64_t row = g * block.tokens + t, head = block.kv_head * p_.group + g, i = block.first + t;
        if (to_.partial) {
          const int64_t to = (block.batch * p_.heads + head) * p_.queries + i;
          to_.partial->max()[to] = rows.max[row];
          to_.partial->sum()[to] = rows.sum[row];
          std::copy_n(rows.acc + row * stride_, stride_, to_.partial->acc() + to * to_.partial->acc_stride());
        } else {
          const float* sink = p_.sink_logits.data ? p_.sink_logits.at<float>({head}) : nullptr;
          float* lse = to_.out->lse.data ? to_.out->lse.at<float>({block.batch, head, i}) : nullptr;
          kernels_.finish(rows, row, sink, p_.dv, to_.out->out.at<float>({block.batch, head, i}), lse);
        }
      }
  }

  const Problem& p_;
  KeyRange range_;
  const ScoreHook* hook_;
  const Destination& to_;
  Context& context_;
  const SplitKernels& kernels_;
  int64_t stride_, tokens_;
  std::vector<Block> blocks_;
  std::vector<Workspace> workspaces_;
};

}  // namespace

void run(const Problem& problem, KeyRange range, const ScoreHook* hook, const Destination& to, Context& context) {
  context.throw_if_stopped();
  Scheduler(problem, range, hook, to, context).run();
}

}  // namespace attend::exact
