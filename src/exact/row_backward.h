#pragma once
// The backward pass of mechanisms that say how a row's scores become weights: scores and the products of the gradient
// of out with the values are made again, some rows at a time; the mechanism turns both into weights and gradients of
// scores, of which the gradients of queries, keys and values are sums.
//
// Threads take kv heads, and within them all is in ascending order of query head and query: bits don't depend on
// threads. A gradient of a bias that heads share is summed by one thread. Memory, a thread: (Tk + 64) (2 D + 3 Dv)
// floats, and three times the rows of scores that lie at a time, about 2 MB each. Never Tq * Tk.
#include <algorithm>
#include <vector>

#include "exact/dense_rows.h"
#include "exact/rows.h"
#include "exact/run_under.h"

namespace attend::exact {

// What is given and what is wanted, checked; f32. Either of the first two, and each of the others, may be absent.
struct RowGradients {
  View d_out, d_lse;
  View q, k, v;
  View bias = {};  // axes of 1 gather what they repeat
};

// Rows [first, first + count) of a query head. A rule finds in s the scores (-inf where a key is not seen) and in g the
// products d_out . v, both of the keys before the row's end; it leaves the weights that values are multiplied with and
// the gradients of the scores. What a rule adds to dq is multiplied with the scale and joins the gradient of q; what it
// adds to dk joins that of k.
struct RowBlock {
  int64_t b, h, first, count, stride;
  float *s, *g;
  const int64_t* ends;
  const float *q, *d_out;  // [count, D], with the scale, and [count, Dv]
  const PackedHead& head;  // with its keys as rows
  float *dq, *dk;          // [count, D]; [keys of the head, D], of all rows so far
  int worker;
};

// What one thread needs for a kv head.
struct RowBackwardWorkspace {
  PackedHead head;
  std::vector<float> value_panels, q, d_out, s, g, across, dq, dk, dv;
  std::vector<int64_t> ends;

  RowBackwardWorkspace(const Problem& p, int64_t rows, int64_t keys) {
    const int64_t padded = padded_keys(keys);
    head.reserve(keys, p.d, p.dv, true);
    auto size = [](std::vector<float>& x, int64_t n) { x.resize(static_cast<size_t>(n)); };
    size(value_panels, padded * p.dv), size(q, rows * p.d), size(d_out, rows * p.dv), size(s, rows * padded);
    size(g, rows * padded), size(across, keys * rows), size(dq, rows * p.d), size(dk, keys * p.d);
    size(dv, keys * p.dv);
    ends.resize(static_cast<size_t>(rows));
  }
};

// to [columns, count] from rows [count, stride].
inline void turn_rows(const float* from, int64_t stride, int64_t count, int64_t columns, float* to) {
  constexpr int64_t kTogether = 16;  // columns whose rows of `to` the first cache holds
  for (int64_t first = 0; first < columns; first += kTogether)
    for (int64_t r = 0; r < count; ++r)
      for (int64_t j = first; j < std::min(columns, first + kTogether); ++j) to[j * count + r] = from[r * stride + j];
}

// How many rows a block has at most, with `keys` keys.
inline int64_t rows_of_block(const Problem& p, int64_t keys) {
  return std::min(std::max<int64_t>(1, p.queries), rows_at_a_time(padded_keys(keys)));
}

template <class Rule>
class RowBackward {
 public:
  RowBackward(const Problem& p, const RowGradients& gradients, int64_t keys, const Rule& rule, Context& context)
      : p_(p),
        to_(gradients),
        keys_(keys),
        stride_(padded_keys(keys)),
        step_(rows_of_block(p, keys)),
        kernels_(dense_kernels(active_isa(context))),
        rule_(rule) {}

  // Batch entries one after the other if the rule has sums over them.
  void run(bool in_turn, Context& context) {
    context.throw_if_stopped();
    std::vector<RowBackwardWorkspace> workspaces;
    for (int t = 0; t < context.threads; ++t) workspaces.emplace_back(p_, step_, keys_);
    const View& bias = to_.bias;
    exact::clear_rows(bias);
    const int64_t at_once = in_turn || (bias.data && bias.shape[0] == 1) ? 1 : p_.batch;
    const int threads = bias.data && bias.shape[1] == 1 ? 1 : context.threads;
    for (int64_t b = 0; b < p_.batch; b += at_once)
      parallel_for(threads, at_once * p_.kv_heads, [&](int64_t task, int worker) {
        if (!context.stop.stop_requested())
          kv_head(b * p_.kv_heads + task, workspaces[static_cast<size_t>(worker)], worker, context);
      });
    context.throw_if_stopped();
  }

 private:
  void kv_head(int64_t task, RowBackwardWorkspace& w, int worker, const Context& context) const {
    const int64_t b = task / p_.kv_heads, kv = task % p_.kv_heads;
    w.head.load(kernels_, p_.keys[static_cast<size_t>(task)], task);
    for (int64_t j = 0; j < w.head.count(); j += kPanelKeys)
      kernels_.pack(DType::kF32, w.head.values() + j * p_.dv, p_.dv, std::min<int64_t>(kPanelKeys, w.head.count() - j),
                    p_.dv, w.value_panels.data() + j * p_.dv);
    std::fill(w.dk.begin(), w.dk.end(), 0.0f);
    std::fill(w.dv.begin(), w.dv.end(), 0.0f);
    for (int64_t h = kv * p_.group; h < (kv + 1) * p_.group; ++h)
      for (int64_t first = 0; first < p_.queries && !context.stop.stop_requested(); first += step_)
        rows(b, h, first, std::min(step_, p_.queries - first), w, worker);
    store(to_.k, b, kv, w.dk, p_.d);
    store(to_.v, b, kv, w.dv, p_.dv);
  }

  void rows(int64_t b, int64_t h, int64_t first, int64_t count, RowBackwardWorkspace& w, int worker) const {
    const int64_t keys = w.head.count();
    score_rows(p_, kernels_, w.head, b, h, first, count, w.q.data(), w.s.data(), stride_, w.ends.data());
    std::fill(w.d_out.begin(), w.d_out.end(), 0.0f);
    std::fill(w.dq.begin(), w.dq.end(), 0.0f);
    for (int64_t r = 0; to_.d_out.data && r < count; ++r)
      std::copy_n(to_.d_out.at<float>({b, h, first + r}), p_.dv, w.d_out.data() + r * p_.dv);
    for (int64_t panel = 0; panel < panel_count(keys); ++panel)
      kernels_.dots(w.d_out.data(), p_.dv, count, p_.dv, w.value_panels.data() + panel * kPanelKeys * p_.dv,
                    w.g.data() + panel * kPanelKeys, stride_);
    rule_(RowBlock{b, h, first, count, stride_, w.s.data(), w.g.data(), w.ends.data(), w.q.data(), w.d_out.data(),
                   w.head, w.dq.data(), w.dk.data(), worker});
    for (int64_t r = 0; r < count; ++r)
      for (std::vector<float>* x : {&w.s, &w.g})
        std::fill(x->data() + r * stride_ + w.ends[static_cast<size_t>(r)], x->data() + r * stride_ + keys, 0.0f);
    if (to_.bias.data) gather_bias(b, h, first, count, w);
    if (to_.q.data) {
      kernels_.add_rows(w.g.data(), stride_, count, keys, w.head.keys(), p_.d, p_.d, w.dq.data(), p_.d);
      for (int64_t r = 0; r < count; ++r) {
        float* to = to_.q.at<float>({b, h, first + r});
        for (int64_t c = 0; c < p_.d; ++c) to[c] = p_.scale * w.dq[static_cast<size_t>(r * p_.d + c)];
      }
    }
    if (to_.k.data) {  // queries carry the scale
      turn_rows(w.g.data(), stride_, count, keys, w.across.data());
      kernels_.add_rows(w.across.data(), count, keys, count, w.q.data(), p_.d, p_.d, w.dk.data(), p_.d);
    }
    if (to_.v.data) {
      turn_rows(w.s.data(), stride_, count, keys, w.across.data());
      kernels_.add_rows(w.across.data(), count, keys, count, w.d_out.data(), p_.dv, p_.dv, w.dv.data(), p_.dv);
    }
  }

  void gather_bias(int64_t b, int64_t h, int64_t first, int64_t count, const RowBackwardWorkspace& w) const {
    const View& to = to_.bias;
    for (int64_t r = 0; r < count; ++r) {
      float* row = to.at<float>({to.shape[0] == 1 ? 0 : b, to.shape[1] == 1 ? 0 : h, to.shape[2] == 1 ? 0 : first + r});
      const float* from = w.g.data() + r * stride_;
      for (int64_t j = 0; j < w.head.count(); ++j) row[to.shape[3] == 1 ? 0 : j] += from[j];
    }
  }

  void store(const View& grad, int64_t b, int64_t kv, const std::vector<float>& from, int64_t width) const {
    for (int64_t j = 0; grad.data && j < grad.shape[2]; ++j)
      std::copy_n(from.data() + j * width, width, grad.at<float>({b, kv, j}));
  }

  const Problem& p_;
  const RowGradients& to_;
  int64_t keys_, stride_, step_;
  const DenseKernels& kernels_;
  const Rule& rule_;
};

// rule(RowBlock) must not throw.
template <class Rule>
void backward_rows(const Problem& p, const RowGradients& gradients, int64_t keys, bool in_turn, Context& context,
                   const Rule& rule) {
  RowBackward<Rule>(p, gradients, keys, rule, context).run(in_turn, context);
}

// One row of n scores to the weights of a softmax and of n products g to gradients of scores, w (factor g - sum of w
// factor g + d_lse); factor null: 1. What is not seen gets 0 in both.
struct SoftmaxSlopes {
  const DenseKernels& kernels;
  float *s, *g;
  int64_t n;
  float d_lse;
  const float* factor = nullptr;

  [[gnu::always_inline]] inline void run() const {
    float most;
    const float sum = kernels.exponentials(s, n, &most), inverse = sum == 0 ? 0 : 1 / sum;
    float *const w = s, *const gradient = g;
    const float* const times = factor;
    float lanes[16] = {};
    for (int64_t j = 0; times && j < n; ++j) gradient[j] *= times[j];
    int64_t j = 0;
    for (; j + 16 <= n; j += 16)
#pragma omp simd
      for (int64_t l = 0; l < 16; ++l) {
        w[j + l] *= inverse;
        lanes[l] += w[j + l] == 0 ? 0.0f : w[j + l] * gradient[j + l];
      }
    for (; j < n; ++j) {
      w[j] *= inverse;
      lanes[j % 16] += w[j] == 0 ? 0.0f : w[j] * gradient[j];
    }
    float mean = 0;
    for (const float lane : lanes) mean += lane;
    const float away = d_lse - mean;
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) gradient[c] = w[c] == 0 ? 0.0f : w[c] * (gradient[c] + away);
  }
};

}  // namespace attend::exact
