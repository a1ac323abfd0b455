#pragma once
// Whole rows of scores, a few queries at a time: for mechanisms whose weights need every score of a row before the
// first weight is known, and for those that are algorithms of their own. What lies in memory is rows x Tk for each
// thread.
#include <algorithm>
#include <vector>

#include "attend/simd/dense.h"
#include "attend/simd/isa.h"
#include "attend/tensor/parallel.h"
#include "exact/slots.h"

namespace attend::exact {

// Keys and values of one kv head as f32: keys in panels of 64, values as dense rows.
class PackedHead {
 public:
  // Room for `count` keys; throws Error(kMemory). `extra_rows`: keep the keys as dense rows, too.
  void reserve(int64_t count, int64_t d, int64_t dv, bool key_rows = false);
  // Does nothing if `id` is what it holds already.
  void load(const DenseKernels& kernels, const Keys& keys, int64_t id);

  int64_t count() const { return count_; }
  const float* panel(int64_t index) const { return panels_.as<float>() + index * d_ * kPanelKeys; }
  const float* values() const { return values_.as<float>(); }  // [count, dv]
  const float* keys() const { return keys_.as<float>(); }      // [count, d]

 private:
  Buffer panels_, values_, keys_;
  int64_t d_ = 0, dv_ = 0, count_ = 0, id_ = -1;
};

int64_t panel_count(int64_t keys);
int64_t padded_keys(int64_t keys);

struct Row {
  int64_t b, h, i, position;
};

// Scores of the rows [first, first + count) of one query head: s[r * stride + j] = bias + scale * q . k[j], -inf where
// j is not seen. `ends[r]` gets one past the last slot that row r sees; beyond it nothing is defined. `q` is scratch,
// [count, d].
void score_rows(const Problem& p, const DenseKernels& kernels, const PackedHead& head, int64_t b, int64_t h,
                int64_t first, int64_t count, float* q, float* s, int64_t stride, int64_t* ends);

// Hides what row (b, i) does not see in s[0, n) and gives one past the last slot that it sees.
int64_t hide(const Problem& p, const Keys& keys, int64_t b, int64_t i, float* s);

inline const Keys& keys_of(const Problem& p, int64_t b, int64_t h) {
  return p.keys[static_cast<size_t>(b * p.kv_heads + h / p.group)];
}

// Rows that a block holds: about 2 MB of scores.
inline int64_t rows_at_a_time(int64_t keys) {
  return std::clamp<int64_t>((int64_t{1} << 19) / std::max<int64_t>(1, keys), 1, 64);
}

// What one thread needs for one block of rows.
struct RowWorkspace {
  PackedHead head;
  Buffer q, s;
  std::vector<int64_t> ends;

  void reserve(int64_t rows, int64_t keys, const Problem& p);  // throws Error(kMemory)
};

// Scores of all rows at once, for few queries: keys are packed panel by panel and each is read once for the query heads
// that share it.
class FewRows {
 public:
  FewRows(const Problem& p, const DenseKernels& kernels, int64_t keys, Context& context);  // throws Error(kMemory)

  static bool fits(const Problem& p, int64_t keys);
  // Fills all scores, as score_rows() gives them.
  void score();
  float* row(int64_t b, int64_t h, int64_t i) const {
    return s_.as<float>() + ((b * p_.heads + h) * p_.queries + i) * stride_;
  }
  int64_t end(int64_t b, int64_t h, int64_t i) const {
    return ends_[static_cast<size_t>((b * p_.heads + h) * p_.queries + i)];
  }
  // out = sum over j of the row's weights times the values.
  void read(const View& out);

 private:
  const Problem& p_;
  const DenseKernels& kernels_;
  int64_t keys_, stride_;
  Context& context_;
  Buffer q_, s_, scratch_;
  std::vector<int64_t> ends_;
};

// For every row: weights(row, s, n, worker) turns its n scores into weights in place; out = sum_j s[j] v[j]. Rows are
// independent of one another, so the result does not depend on threads. `weights` must not throw.
template <class F>
void attend_rows(const Problem& p, const View& out, Context& context, const F& weights) {
  context.throw_if_stopped();
  if (p.batch == 0 || p.heads == 0 || p.queries == 0) return;
  const DenseKernels& kernels = dense_kernels(active_isa(context));
  int64_t most = 0;
  for (const Keys& keys : p.keys) most = std::max(most, keys.count());
  if (FewRows::fits(p, most)) {
    FewRows few(p, kernels, most, context);
    few.score();
    parallel_for(context.threads, p.batch * p.heads * p.queries, [&](int64_t task, int worker) {
      const int64_t b = task / (p.heads * p.queries), h = task / p.queries % p.heads, i = task % p.queries;
      weights(Row{b, h, i, p.position(b, i)}, few.row(b, h, i), few.end(b, h, i), worker);
    });
    few.read(out);
    context.throw_if_stopped();
    return;
  }
  const int64_t stride = padded_keys(most);
  const int64_t step = std::min(p.queries, rows_at_a_time(stride)), blocks = (p.queries + step - 1) / step;
  std::vector<RowWorkspace> workspaces(static_cast<size_t>(context.threads));
  for (RowWorkspace& w : workspaces) w.reserve(step, most, p);
  parallel_for(context.threads, p.batch * p.heads * blocks, [&](int64_t task, int worker) {
    if (context.stop.stop_requested()) return;
    RowWorkspace& w = workspaces[static_cast<size_t>(worker)];
    const int64_t b = task / (p.heads * blocks), h = task / blocks % p.heads, first = task % blocks * step;
    const int64_t count = std::min(step, p.queries - first);
    w.head.load(kernels, keys_of(p, b, h), b * p.kv_heads + h / p.group);
    float* s = w.s.as<float>();
    score_rows(p, kernels, w.head, b, h, first, count, w.q.as<float>(), s, stride, w.ends.data());
    const int64_t end = *std::max_element(w.ends.begin(), w.ends.begin() + count);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t i = first + r, n = w.ends[static_cast<size_t>(r)];
      weights(Row{b, h, i, p.position(b, i)}, s + r * stride, n, worker);
      std::fill(s + r * stride + n, s + r * stride + end, 0.0f);
      std::fill_n(out.at<float>({b, h, i}), p.dv, 0.0f);
    }
    kernels.add_rows(s, stride, count, end, w.head.values(), p.dv, p.dv, out.at<float>({b, h, first}), out.stride[2]);
  });
  context.throw_if_stopped();
}

}  // namespace attend::exact
