#include "exact/schedule.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "attend/simd/isa.h"
#include "attend/simd/split.h"
#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"
#include "exact/mask_rows.h"
#include "exact/workspace.h"

namespace attend::exact {
namespace {

// Rows of a block share one packed copy of each split's keys: so many that packing takes below a tenth of the products,
// in whole groups of 6.
constexpr int64_t block_rows(Compute compute) {
  if (compute == Compute::kF32) return 144;
  return compute == Compute::kBF16 ? 288 : 432;
}
constexpr int64_t kGroupRows = 6;

class Scheduler {
 public:
  Scheduler(const Problem& problem, KeyRange range, const Destination& to, Context& context)
      : p_(problem),
        range_(range),
        to_(to),
        context_(context),
        kernels_(split_kernels(active_isa(context))),
        stride_(padded_dv(problem.dv)) {
    tokens_ = std::max<int64_t>(1, block_rows(p_.options.compute) / p_.group / kGroupRows) * kGroupRows;
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
    const int64_t bytes = Workspace{}.carve(nullptr, tokens_, p_.group, p_.d, p_.dv);
    for (int t = 0; t < threads; ++t) {
      Workspace w;
      w.carve(context_.scratch[static_cast<size_t>(t)].reserve(bytes), tokens_, p_.group, p_.d, p_.dv);
      workspaces_.push_back(w);
    }
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
      find_slots(block, workspaces_[0]);
      int64_t splits = 0;
      each_split(block, workspaces_[0], [&](const Split&) { ++splits; });
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
    parallel_for(context_.threads, count, [&](int64_t i, int worker) {
      if (context_.stop.stop_requested()) return;
      const Block& block = blocks_[static_cast<size_t>(i)];
      Workspace& w = workspaces_[static_cast<size_t>(worker)];
      prepare(block, w);
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

  void over_splits(const Block& block, Workspace& w, const PartialRows& whole, Pass pass, const Given& given) const {
    const PartialRows part{w.split_max, w.split_sum, w.split_acc, stride_};
    const int64_t rows = block.tokens * p_.group;
    bool first = true;
    each_split(block, w, [&](const Split& split) {
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
      find_slots(blocks_[i], workspaces_[0]);
      each_split(blocks_[i], workspaces_[0], [&](const Split& split) {
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
      parallel_for(context_.threads, static_cast<int64_t>(tasks.size()), [&](int64_t i, int worker) {
        if (context_.stop.stop_requested()) return;
        Workspace& w = workspaces_[static_cast<size_t>(worker)];
        const Task& task = tasks[static_cast<size_t>(i)];
        const Block& block = blocks_[static_cast<size_t>(task.block)];
        if (prepared[static_cast<size_t>(worker)] != task.block) prepare(block, w);
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
    const float scale = p_.options.compute == Compute::kF32 ? p_.scale : 1.0f;
    for (int64_t g = 0; g < p_.group; ++g)
      for (int64_t t = 0; t < block.tokens; ++t) {
        const float* from = p_.q.at<float>({block.batch, block.kv_head * p_.group + g, block.first + t});
        kernels_.scale(from, p_.d, scale, w.q + (g * block.tokens + t) * p_.d);
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
      if (((a.begin < last && first < a.end) || (b.begin < last && first < b.end)) && mask_reaches(block, w, split))
        f(Split{first, static_cast<int>(last - first)});
      slot = last;
      if (slot >= a.end && slot < b.begin && b.begin < b.end) slot = b.begin;
    }
  }

  const BlockMask* mask() const { return p_.variant.mask; }
  int64_t mask_heads() const { return mask()->sizes().heads == 1 ? 1 : p_.group; }

  bool mask_reaches(const Block& block, const Workspace& w, int64_t split) const {
    for (int64_t g = 0; mask() && g < mask_heads(); ++g)
      if (exact::mask_reaches(*mask(), block.batch, block.kv_head * p_.group + g,
                              {w.q_position, static_cast<size_t>(block.tokens)}, split * kSplitPositions,
                              (split + 1) * kSplitPositions))
        return true;
    return !mask();
  }

  void gather_mask(const Block& block, Workspace& w, const Split& split) const {
    for (int64_t g = 0; g < mask_heads(); ++g)
      for (int64_t t = 0; t < block.tokens; ++t)
        gather_mask_row(*mask(), keys(block), split, block.batch, block.kv_head * p_.group + g, w.q_position[t],
                        w.mask + (g * block.tokens + t) * kMaskWords);
  }

  void attend(const Block& block, Workspace& w, const Split& split, const PartialRows& to, Pass pass,
              const Given& given) const {
    const Keys& k = keys(block);
    auto columns = [&](KeyRange r, int32_t& begin, int32_t& end) {
      begin = static_cast<int32_t>(std::clamp<int64_t>(r.begin - split.first_slot, 0, split.cols));
      end = static_cast<int32_t>(std::clamp<int64_t>(r.end - split.first_slot, 0, split.cols));
    };
    for (int64_t t = 0; t < block.tokens; ++t) {
      columns(w.slots[t].a, w.visible[t].a0, w.visible[t].a1);
      columns(w.slots[t].b, w.visible[t].b0, w.visible[t].b1);
    }
    if (mask()) gather_mask(block, w, split);
    const int64_t head = block.kv_head * p_.group;
    const float* bias = nullptr;
    if (p_.bias.data) bias = p_.bias.at<float>({block.batch, head, block.first, split.first_slot});
    const SplitJob job{
        .q = w.q,
        .compute = p_.options.compute,
        .score_scale = p_.scale,
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
        .given_max = pass == Pass::kSecond && p_.softmax() ? given.max : nullptr,
        .given_inverse = pass == Pass::kSecond ? given.inverse : nullptr,
        .final_hook = pass == Pass::kSecond ? p_.variant.final_weight : nullptr,
        .sums_only = pass == Pass::kFirst || (to_.out && !to_.out->out.data),
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
    each_row(block, [&](int64_t row, int64_t head, int64_t i) {
      if (to_.partial) {
        const int64_t to = (block.batch * p_.heads + head) * p_.queries + i;
        to_.partial->max()[to] = rows.max[row];
        to_.partial->sum()[to] = rows.sum[row];
        std::copy_n(rows.acc + row * stride_, stride_, to_.partial->acc() + to * to_.partial->acc_stride());
        return;
      }
      const bool plain = p_.softmax() && !two_passes();
      if (!plain && (!divide || rows.sum[row] == 0)) rows.sum[row] = 1;
      float* out = to_.out->out.data ? to_.out->out.at<float>({block.batch, head, i}) : nullptr;
      kernels_.finish(rows, row, plain ? sink_of(head) : nullptr, p_.dv, out,
                      two_passes() ? nullptr : lse_of(block, head, i));
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
  KeyRange range_;
  const Destination& to_;
  Context& context_;
  const SplitKernels& kernels_;
  int64_t stride_, tokens_;
  std::vector<Block> blocks_;
  std::vector<Workspace> workspaces_;
};

}  // namespace

void run(const Problem& problem, KeyRange range, const Destination& to, Context& context) {
  context.throw_if_stopped();
  Scheduler(problem, range, to, context).run();
}

}  // namespace attend::exact
