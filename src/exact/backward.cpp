// The backward pass: which splits of the keys meet which blocks of queries, and in which order sums are made.
#include <algorithm>
#include <cmath>
#include <limits>

#include "attend/exact/softmax.h"
#include "attend/simd/backward.h"
#include "attend/simd/isa.h"
#include "attend/tensor/parallel.h"
#include "exact/mask_rows.h"
#include "exact/slots.h"
#include "exact/turns.h"

namespace attend {
namespace exact {
namespace {

// Queries of one head against one split.
struct Piece {
  int64_t query_block;
  int32_t dq_turn, bias_turn;
};

// One kv head's keys at positions [256 chunk, 256 (chunk + 1)).
struct Task {
  int64_t batch, kv_head;
  Split split;
  std::vector<Piece> pieces;
};

// What each thread owns.
struct Buffers {
  float *q, *d_out, *lse, *delta, *dq;
  int32_t* q_position;
  SlotRanges* slots;
  ColumnRanges* visible;
  uint64_t* mask;
  std::byte* kernel;

  int64_t carve(std::byte* base, int64_t d, int64_t dv) {
    Carver carver(base);
    carver.take(q, kBackwardRows * d + 16), carver.take(d_out, kBackwardRows * padded_dv(dv));
    carver.take(lse, kBackwardRows), carver.take(delta, kBackwardRows);
    carver.take(dq, kBackwardRows * padded_dv(d));
    carver.take(q_position, kBackwardRows), carver.take(slots, kBackwardRows), carver.take(visible, kBackwardRows);
    carver.take(mask, kBackwardRows * kMaskWords);
    carver.take(kernel, backward_scratch_bytes(d, dv));
    return carver.bytes();
  }
};

void clear(const View& v) {
  if (!v.data || v.count() == 0) return;
  const int64_t width = v.shape[v.rank - 1], rows = v.count() / width;
  for (int64_t row = 0; row < rows; ++row) {
    int64_t offset = 0, rest = row;
    for (int a = v.rank - 2; a >= 0; --a) offset += rest % v.shape[a] * v.stride[a], rest /= v.shape[a];
    for (int64_t c = 0; c < width; ++c) v.as<float>()[offset + c * v.stride[v.rank - 1]] = 0;
  }
}

// Rows [first, end) of a head.
void clear_rows(const View& v, int64_t b, int64_t head, int64_t first, int64_t end) {
  for (int64_t i = first; v.data && i < end; ++i) std::fill_n(v.at<float>({b, head, i}), v.shape[3], 0.0f);
}

class Backward {
 public:
  Backward(const Problem& problem, const AttnOut& forward, const AttnOutGrad& grad_out, const AttnGrad& grad_in,
           int64_t key_axis, Context& context)
      : p_(problem),
        forward_(forward),
        d_outputs_(grad_out),
        grad_(grad_in),
        context_(context),
        kernels_(backward_kernels(active_isa(context))),
        key_axis_(key_axis),
        blocks_((problem.queries + kBackwardRows - 1) / kBackwardRows),
        dq_turns_(problem.batch * problem.heads * blocks_),
        bias_turns_(blocks_) {
    for (int a = 0; a < 4 && grad_.bias.data; ++a)
      if (grad_.bias.shape[a] == 1) grad_.bias.stride[a] = 0;
  }

  void run() {
    clear(grad_.bias), clear(grad_.sink_logits);
    if (p_.batch * p_.heads * p_.queries == 0) return clear(grad_.k), clear(grad_.v);
    const size_t threads = static_cast<size_t>(context_.threads);
    if (context_.scratch.size() <= threads) context_.scratch.resize(threads + 1);
    const int64_t bytes = Buffers{}.carve(nullptr, p_.d, p_.dv);
    for (size_t t = 0; t < threads; ++t) buffers_.emplace_back().carve(context_.scratch[t].reserve(bytes), p_.d, p_.dv);
    delta_ = reinterpret_cast<float*>(
        context_.scratch[threads].reserve(p_.batch * p_.heads * p_.queries * static_cast<int64_t>(sizeof(float))));
    find_deltas();
    make_tasks();
    if (bias_by_task()) bias_sums_.resize(tasks_.size());
    parallel_for(context_.threads, static_cast<int64_t>(tasks_.size()), [&](int64_t i, int worker) {
      run_task(static_cast<size_t>(i), buffers_[static_cast<size_t>(worker)]);
    });
    fold_bias();
    context_.throw_if_stopped();
  }

 private:
  int64_t row_of(int64_t b, int64_t h, int64_t i) const { return (b * p_.heads + h) * p_.queries + i; }
  int64_t tokens_of(int64_t block) const {
    return std::min<int64_t>(kBackwardRows, p_.queries - block * kBackwardRows);
  }
  const Keys& keys(int64_t b, int64_t kv_head) const { return p_.keys[static_cast<size_t>(b * p_.kv_heads + kv_head)]; }

  // delta = dO . O - dlse; the gradient of a sink logit is -sum over queries of its weight times delta.
  void find_deltas() {
    std::vector<double> sink_sums(static_cast<size_t>(p_.batch * p_.heads), 0);
    parallel_for(context_.threads, p_.batch * p_.heads, [&](int64_t head, int) {
      const int64_t b = head / p_.heads, h = head % p_.heads;
      for (int64_t i = 0; i < p_.queries; ++i) {
        float sum = 0;
        if (d_outputs_.out.data) {
          const float *x = d_outputs_.out.at<float>({b, h, i}), *y = forward_.out.at<float>({b, h, i});
          float lanes[16] = {};
          int64_t c = 0;
          for (; c + 16 <= p_.dv; c += 16)
            for (int64_t l = 0; l < 16; ++l) lanes[l] += x[c + l] * y[c + l];
          for (; c < p_.dv; ++c) lanes[c % 16] += x[c] * y[c];
          for (float lane : lanes) sum += lane;
        }
        if (d_outputs_.lse.data) sum -= *d_outputs_.lse.at<float>({b, h, i});
        const float lse = *forward_.lse.at<float>({b, h, i});
        if (lse == -std::numeric_limits<float>::infinity()) sum = 0;
        delta_[row_of(b, h, i)] = sum;
        if (grad_.sink_logits.data && sum != 0)
          sink_sums[static_cast<size_t>(head)] -=
              std::exp(double{*p_.sink_logits.at<float>({h})} - double{lse}) * double{sum};
      }
    });
    for (int64_t h = 0; h < p_.heads && grad_.sink_logits.data; ++h) {
      double sum = 0;
      for (int64_t b = 0; b < p_.batch; ++b) sum += sink_sums[static_cast<size_t>(b * p_.heads + h)];
      *grad_.sink_logits.at<float>({h}) = static_cast<float>(sum);
    }
  }

  bool mask_meets(int64_t b, int64_t h, int64_t block, int64_t chunk) const {
    if (!p_.variant.mask) return true;
    std::vector<int32_t> positions;
    for (int64_t t = 0; t < tokens_of(block); ++t)
      positions.push_back(static_cast<int32_t>(p_.position(b, block * kBackwardRows + t)));
    return mask_reaches(*p_.variant.mask, b, h, positions, chunk * kBackwardPositions,
                        (chunk + 1) * kBackwardPositions);
  }

  // All pairs of a split and a block of queries that meet, ascending by split, then batch entry and head.
  void make_tasks() {
    int64_t chunks = 0;
    for (const Keys& k : p_.keys)
      chunks = std::max(chunks, (k.end_position() + kBackwardPositions - 1) / kBackwardPositions);
    std::vector<SlotRanges> hulls(static_cast<size_t>(p_.batch * p_.kv_heads * blocks_));
    for (int64_t b = 0; b < p_.batch; ++b)
      for (int64_t h = 0; h < p_.kv_heads; ++h)
        for (int64_t block = 0; block < blocks_; ++block) {
          SlotRanges& hull = hulls[static_cast<size_t>((b * p_.kv_heads + h) * blocks_ + block)];
          hull = {{kNoEnd, 0}, {kNoEnd, 0}};
          for (int64_t t = 0; t < tokens_of(block); ++t) {
            const SlotRanges row = slots_seen(p_, keys(b, h), b, block * kBackwardRows + t);
            for (const auto& [into, from] : {std::pair{&hull.a, row.a}, {&hull.b, row.b}})
              if (from.begin < from.end) *into = {std::min(into->begin, from.begin), std::max(into->end, from.end)};
          }
        }
    std::vector<int32_t> dq_turn(static_cast<size_t>(p_.batch * p_.heads * blocks_), 0);
    std::vector<int32_t> bias_turn(static_cast<size_t>(blocks_), 0);
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      for (int64_t b = 0; b < p_.batch; ++b)
        for (int64_t kv_head = 0; kv_head < p_.kv_heads; ++kv_head) {
          const Keys& k = keys(b, kv_head);
          const int64_t first = k.lower_slot(chunk * kBackwardPositions),
                        last = k.lower_slot((chunk + 1) * kBackwardPositions);
          if (first == last) continue;
          Task task{b, kv_head, {first, static_cast<int>(last - first)}, {}};
          for (int64_t g = 0; g < p_.group; ++g)
            for (int64_t block = 0; block < blocks_; ++block) {
              const SlotRanges& hull = hulls[static_cast<size_t>((b * p_.kv_heads + kv_head) * blocks_ + block)];
              auto meets = [&](KeyRange r) { return r.begin < last && first < r.end; };
              const int64_t head = kv_head * p_.group + g;
              if ((!meets(hull.a) && !meets(hull.b)) || !mask_meets(b, head, block, chunk)) continue;
              task.pieces.push_back({g * blocks_ + block,
                                     dq_turn[static_cast<size_t>((b * p_.heads + head) * blocks_ + block)]++,
                                     bias_turn[static_cast<size_t>(block)]++});
            }
          tasks_.push_back(std::move(task));
        }
    // What no task writes.
    for (int64_t b = 0; b < p_.batch; ++b) {
      for (int64_t h = 0; h < p_.heads; ++h)
        for (int64_t block = 0; block < blocks_; ++block)
          if (dq_turn[static_cast<size_t>((b * p_.heads + h) * blocks_ + block)] == 0)
            clear_rows(grad_.q, b, h, block * kBackwardRows, block * kBackwardRows + tokens_of(block));
      for (int64_t h = 0; h < p_.kv_heads; ++h)
        for (const View& v : {grad_.k, grad_.v}) clear_rows(v, b, h, keys(b, h).count(), v.shape[2]);
    }
  }

  void run_task(size_t index, Buffers& w) {
    const Task& task = tasks_[index];
    BackwardJob job = job_of(task, w);
    const bool keys_finite = kernels_.prepare(job);
    for (const Piece& piece : task.pieces) {
      const int64_t head = task.kv_head * p_.group + piece.query_block / blocks_, block = piece.query_block % blocks_;
      if (!context_.stop.stop_requested()) {
        gather(task, head, block, w, job);
        job.finite = keys_finite;
        const float* d_score = nullptr;
        job.d_score = grad_.bias.data ? &d_score : nullptr;
        kernels_.block(job);
        if (grad_.bias.data) add_bias(index, task, head, block, piece, w, d_score);
      }
      const int64_t place = (task.batch * p_.heads + head) * blocks_ + block;
      dq_turns_.wait(place, piece.dq_turn);
      if (grad_.q.data && !context_.stop.stop_requested()) add_queries(task.batch, head, block, w, piece.dq_turn > 0);
      dq_turns_.pass(place);
      if (bias_shared()) bias_turns_.wait(block, piece.bias_turn), bias_turns_.pass(block);
    }
    const BackwardSums sums = backward_sums(w.kernel, p_.d, p_.dv);
    store(task, grad_.k, sums.dk, p_.d);
    store(task, grad_.v, sums.dv, p_.dv);
  }

  BackwardJob job_of(const Task& task, const Buffers& w) const {
    const Keys& k = keys(task.batch, task.kv_head);
    BackwardJob job{};
    job.split = {.q = w.q,
                 .d = static_cast<int>(p_.d),
                 .dv = static_cast<int>(p_.dv),
                 .q_position = w.q_position,
                 .runs = k.runs(task.split.first_slot, task.split.first_slot + task.split.cols),
                 .first_slot = task.split.first_slot,
                 .cols = task.split.cols,
                 .k_position = k.positions(task.split.first_slot),
                 .first_position = task.split.first_slot,
                 .visible = w.visible,
                 .mask = p_.variant.mask ? w.mask : nullptr,
                 .softcap = p_.softcap,
                 .bias_token_stride = p_.bias.stride[2],
                 .bias_col_stride = p_.bias.stride[3],
                 .hook = p_.variant.score,
                 .batch = static_cast<int>(task.batch),
                 .normalizer = p_.variant.normalizer};
    job.score_slope = p_.variant.score_slope;
    job.weight = p_.variant.weight;
    job.lse = w.lse, job.delta = w.delta, job.dq = w.dq;
    job.d_out = d_outputs_.out.data ? w.d_out : nullptr;
    job.scratch = w.kernel;
    return job;
  }

  void gather(const Task& task, int64_t head, int64_t block, Buffers& w, BackwardJob& job) const {
    const int64_t tokens = tokens_of(block), padded = padded_dv(p_.dv);
    job.split.tokens = static_cast<int>(tokens);
    job.split.first_head = static_cast<int>(head);
    if (p_.bias.data)
      job.split.bias = p_.bias.at<float>({task.batch, head, block * kBackwardRows, task.split.first_slot});
    const int64_t first = block * kBackwardRows;
    kernels_.scale_rows(p_.q.at<float>({task.batch, head, first}), p_.q.stride[2], p_.scale, w.q, p_.d, tokens, p_.d,
                        false);
    if (const View& d_out = d_outputs_.out; d_out.data) {
      kernels_.scale_rows(d_out.at<float>({task.batch, head, first}), d_out.stride[2], 1, w.d_out, padded, tokens,
                          p_.dv, false);
      for (int64_t t = 0; t < tokens; ++t) std::fill_n(w.d_out + t * padded + p_.dv, padded - p_.dv, 0.0f);
    }
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t i = first + t;
      w.lse[t] = *forward_.lse.at<float>({task.batch, head, i});
      w.delta[t] = delta_[row_of(task.batch, head, i)];
      w.q_position[t] = static_cast<int32_t>(p_.position(task.batch, i));
      w.visible[t] = columns_of(slots_seen(p_, keys(task.batch, task.kv_head), task.batch, i), task.split);
      if (p_.variant.mask)
        gather_mask_row(*p_.variant.mask, keys(task.batch, task.kv_head), task.split, task.batch, head, w.q_position[t],
                        w.mask + t * kMaskWords);
    }
    std::fill_n(w.q + tokens * p_.d, 16, 0.0f);
  }

  void add_queries(int64_t b, int64_t head, int64_t block, const Buffers& w, bool to_others) const {
    kernels_.scale_rows(w.dq, padded_dv(p_.d), p_.scale, grad_.q.at<float>({b, head, block * kBackwardRows}),
                        grad_.q.stride[2], tokens_of(block), p_.d, to_others);
  }

  void store(const Task& task, const View& grad, const float* rows, int64_t width) const {
    for (int64_t j = 0; grad.data && j < task.split.cols; ++j)
      std::copy_n(rows + j * padded_dv(width), width,
                  grad.at<float>({task.batch, task.kv_head, task.split.first_slot + j}));
  }

  // A bias that all queries share gathers a task at a time; one that batch entries, heads or keys share is added to by
  // one thread after the other.
  bool bias_by_task() const { return grad_.bias.data && grad_.bias.shape[2] == 1 && p_.queries > 1; }

  bool bias_shared() const {
    const Shape& shape = grad_.bias.shape;
    return grad_.bias.data && !bias_by_task() &&
           (shape[0] != p_.batch || shape[1] != p_.heads || shape[3] != key_axis_);
  }

  void add_bias(size_t index, const Task& task, int64_t head, int64_t block, const Piece& piece, const Buffers& w,
                const float* d_score) {
    const int64_t first = task.split.first_slot, cols = task.split.cols;
    auto seen = [&](int64_t t, int64_t c) {
      const ColumnRanges& v = w.visible[t];
      return (c >= v.a0 && c < v.a1) || (c >= v.b0 && c < v.b1);
    };
    if (bias_by_task()) {
      std::vector<float>& sums = bias_sums_[index];
      sums.resize(static_cast<size_t>(p_.group * cols), 0.0f);
      const int64_t g = head - task.kv_head * p_.group;
      for (int64_t t = 0; t < tokens_of(block); ++t)
        for (int64_t c = 0; c < cols; ++c)
          if (seen(t, c)) sums[static_cast<size_t>(g * cols + c)] += d_score[t * kBackwardStride + c];
      return;
    }
    if (bias_shared()) bias_turns_.wait(block, piece.bias_turn);
    for (int64_t t = 0; t < tokens_of(block); ++t) {
      float* to = grad_.bias.at<float>({task.batch, head, block * kBackwardRows + t, first});
      for (int64_t c = 0; c < cols; ++c)
        if (seen(t, c)) to[c * grad_.bias.stride[3]] += d_score[t * kBackwardStride + c];
    }
  }

  void fold_bias() {
    for (size_t index = 0; index < bias_sums_.size(); ++index) {
      const Task& task = tasks_[index];
      const int64_t cols = static_cast<int64_t>(bias_sums_[index].size()) / p_.group;
      for (int64_t g = 0; g < p_.group; ++g)
        for (int64_t c = 0; c < cols; ++c)
          *grad_.bias.at<float>({task.batch, task.kv_head * p_.group + g, 0, task.split.first_slot + c}) +=
              bias_sums_[index][static_cast<size_t>(g * cols + c)];
    }
  }

  const Problem& p_;
  const AttnOut& forward_;
  const AttnOutGrad& d_outputs_;
  AttnGrad grad_;
  Context& context_;
  const BackwardKernels& kernels_;
  int64_t key_axis_, blocks_;  // Tk; blocks of queries, a head
  Turns dq_turns_, bias_turns_;
  float* delta_ = nullptr;
  std::vector<Buffers> buffers_;
  std::vector<Task> tasks_;
  std::vector<std::vector<float>> bias_sums_;  // [tasks][group, cols]
};

}  // namespace
}  // namespace exact

void softmax_attention_backward(const Qkv& in, const SoftmaxOptions& options, const AttnOut& forward,
                                const AttnOutGrad& grad_out, const AttnGrad& grad_in, Context& context,
                                const Variant& variant) {
  const exact::Problem problem = exact::check(in, options, "softmax backward", variant);
  exact::check_gradients(problem, in, forward, grad_out, grad_in, "softmax backward");
  context.throw_if_stopped();
  exact::Backward(problem, forward, grad_out, grad_in, in.k.shape[2], context).run();
}

}  // namespace attend
