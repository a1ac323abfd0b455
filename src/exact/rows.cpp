#include "exact/rows.h"

#include <limits>

namespace attend::exact {
namespace {

constexpr float kHidden = -std::numeric_limits<float>::infinity();

// Hides and biases the scores of one row.
int64_t finish_row(const Problem& p, int64_t b, int64_t h, int64_t i, float* row) {
  const int64_t end = hide(p, keys_of(p, b, h), b, i, row);
  if (!p.bias.data) return end;
  const float* bias = p.bias.at<float>({b, h, i});
  for (int64_t j = 0; j < end; ++j)
    if (row[j] != kHidden) row[j] += bias[j * p.bias.stride[3]];
  return end;
}

}  // namespace

int64_t panel_count(int64_t keys) {
  return (keys + kPanelKeys - 1) / kPanelKeys;
}

int64_t padded_keys(int64_t keys) {
  return panel_count(keys) * kPanelKeys;
}

void PackedHead::reserve(int64_t count, int64_t d, int64_t dv, bool key_rows) {
  d_ = d, dv_ = dv, id_ = -1;
  panels_ = Buffer(std::max<int64_t>(1, padded_keys(count) * d) * 4);
  values_ = Buffer(std::max<int64_t>(1, count * dv) * 4);
  if (key_rows) keys_ = Buffer(std::max<int64_t>(1, count * d) * 4);
}

void PackedHead::load(const DenseKernels& kernels, const Keys& keys, int64_t id) {
  if (id == id_) return;
  id_ = id, count_ = keys.count();
  for (const KeyRun& run : keys.runs()) {
    kernels.widen_run(run.values(), run.count, dv_, values_.as<float>() + run.first_slot * dv_, dv_);
    if (keys_.bytes()) kernels.widen_run(run.keys(), run.count, d_, keys_.as<float>() + run.first_slot * d_, d_);
    if (run.first_slot == 0 && run.count == count_) {
      for (int64_t j = 0; j < count_; j += kPanelKeys)
        kernels.pack_run(run.keys().from(j), std::min<int64_t>(kPanelKeys, count_ - j), d_,
                         panels_.as<float>() + j * d_);
      continue;
    }
    // Runs end inside panels: key by key.
    for (int64_t j = 0; j < run.count; ++j) {
      const int64_t slot = run.first_slot + j;
      float* to = panels_.as<float>() + slot / kPanelKeys * d_ * kPanelKeys + slot % kPanelKeys;
      float row[512];
      kernels.widen_run(run.keys().from(j), 1, d_, row, 0);
      for (int64_t c = 0; c < d_; ++c) to[c * kPanelKeys] = row[c];
    }
  }
}

void RowWorkspace::reserve(int64_t rows, int64_t keys, const Problem& p) {
  head.reserve(keys, p.d, p.dv);
  q = Buffer(rows * p.d * 4);
  s = Buffer(std::max<int64_t>(1, rows * padded_keys(keys)) * 4);
  ends.resize(static_cast<size_t>(rows));
}

FewRows::FewRows(const Problem& p, const DenseKernels& kernels, int64_t keys, Context& context)
    : p_(p), kernels_(kernels), keys_(keys), stride_(padded_keys(keys)), context_(context) {
  const int64_t rows = p.batch * p.heads * p.queries;
  q_ = Buffer(rows * p.d * 4);
  s_ = Buffer(std::max<int64_t>(1, rows * stride_) * 4);
  scratch_ = Buffer(context.threads * kPanelKeys * std::max<int64_t>(p.d, kPanelKeys) * 4);
  ends_.resize(static_cast<size_t>(rows));
}

bool FewRows::fits(const Problem& p, int64_t keys) {
  if (p.queries > 16 || p.batch * p.heads * p.queries * keys > (int64_t{1} << 22)) return false;
  // Keys in one run: a panel is then a piece of it. Values are read by columns: quantised rows can't be.
  return std::all_of(p.keys.begin(), p.keys.end(),
                     [](const Keys& k) { return k.runs().size() == 1 && !is_quantised(k.runs()[0].v_type); });
}

void FewRows::score() {
  const int64_t rows = p_.group * p_.queries, panels = panel_count(keys_);
  for (int64_t row = 0; row < p_.batch * p_.heads * p_.queries; ++row) {
    const float* from = p_.q.at<float>({row / (p_.heads * p_.queries), row / p_.queries % p_.heads, row % p_.queries});
    float* to = q_.as<float>() + row * p_.d;
    for (int64_t c = 0; c < p_.d; ++c) to[c] = from[c] * p_.scale;
  }
  parallel_for(context_.threads, p_.batch * p_.kv_heads * panels, [&](int64_t task, int worker) {
    const int64_t head = task / panels, first = task % panels * kPanelKeys;
    const Keys& keys = p_.keys[static_cast<size_t>(head)];
    if (first >= keys.count()) return;
    const KeyRun& run = keys.runs()[0];
    float* panel = scratch_.as<float>() + worker * kPanelKeys * std::max<int64_t>(p_.d, kPanelKeys);
    kernels_.pack_run(run.keys().from(first), std::min<int64_t>(kPanelKeys, keys.count() - first), p_.d, panel);
    kernels_.dots(q_.as<float>() + head * rows * p_.d, p_.d, rows, p_.d, panel,
                  s_.as<float>() + head * rows * stride_ + first, stride_);
  });
  parallel_for(context_.threads, p_.batch * p_.heads * p_.queries, [&](int64_t task, int) {
    const int64_t b = task / (p_.heads * p_.queries), h = task / p_.queries % p_.heads, i = task % p_.queries;
    ends_[static_cast<size_t>(task)] = finish_row(p_, b, h, i, row(b, h, i));
  });
}

void FewRows::read(const View& out) {
  const int64_t rows = p_.group * p_.queries, chunks = (p_.dv + kPanelKeys - 1) / kPanelKeys;
  parallel_for(context_.threads, p_.batch * p_.kv_heads * chunks, [&](int64_t task, int worker) {
    const int64_t head = task / chunks, column = task % chunks * kPanelKeys;
    const int64_t width = std::min<int64_t>(kPanelKeys, p_.dv - column), b = head / p_.kv_heads;
    const Keys& keys = p_.keys[static_cast<size_t>(head)];
    const KeyRun& run = keys.runs()[0];
    float* tile = scratch_.as<float>() + worker * kPanelKeys * std::max<int64_t>(p_.d, kPanelKeys);
    auto place = [&](int64_t r) {
      return out.at<float>({b, head % p_.kv_heads * p_.group + r / p_.queries, r % p_.queries, column});
    };
    for (int64_t r = 0; r < rows; ++r) std::fill_n(place(r), width, 0.0f);
    for (int64_t first = 0; first < keys.count(); first += kPanelKeys) {
      const int64_t count = std::min<int64_t>(kPanelKeys, keys.count() - first);
      const int64_t at = first * run.v_stride + column;
      kernels_.widen(run.v_type, static_cast<const char*>(run.v) + at * size_of(run.v_type), run.v_stride, count, width,
                     tile, kPanelKeys);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t n = std::clamp<int64_t>(ends_[static_cast<size_t>(head * rows + r)] - first, 0, count);
        kernels_.add_rows(s_.as<float>() + (head * rows + r) * stride_ + first, 0, 1, n, tile, kPanelKeys, width,
                          place(r), 0);
      }
    }
  });
}

int64_t hide(const Problem& p, const Keys& keys, int64_t b, int64_t i, float* s) {
  const SlotRanges seen = slots_seen(p, keys, b, i);
  int64_t end = 0;
  for (const KeyRange& r : {seen.a, seen.b}) {
    if (r.begin >= r.end) continue;
    std::fill(s + end, s + r.begin, kHidden);
    end = r.end;
  }
  return end;
}

void score_rows(const Problem& p, const DenseKernels& kernels, const PackedHead& head, int64_t b, int64_t h,
                int64_t first, int64_t count, float* q, float* s, int64_t stride, int64_t* ends) {
  for (int64_t r = 0; r < count; ++r) {
    const float* from = p.q.at<float>({b, h, first + r});
    for (int64_t c = 0; c < p.d; ++c) q[r * p.d + c] = from[c] * p.scale;
  }
  const Keys& keys = keys_of(p, b, h);
  int64_t last = 0;
  if (p.options.causal && p.options.prefix == 0 && !p.q_positions.data) {
    last = std::clamp<int64_t>(p.position(b, first + count - 1) + 1, 0, kNoEnd - 1);
    last = keys.lower_slot(last);
  } else {
    last = head.count();
  }
  for (int64_t panel = 0; panel < panel_count(last); ++panel)
    kernels.dots(q, p.d, count, p.d, head.panel(panel), s + panel * kPanelKeys, stride);
  for (int64_t r = 0; r < count; ++r) ends[r] = finish_row(p, b, h, first + r, s + r * stride);
}

}  // namespace attend::exact
