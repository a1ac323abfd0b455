#include "exact/rows.h"

#include <limits>

namespace attend::exact {
namespace {

constexpr float kHidden = -std::numeric_limits<float>::infinity();

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
    const auto* k = static_cast<const char*>(run.k);
    const auto* v = static_cast<const char*>(run.v);
    kernels.widen(keys.v_type(), v, run.v_stride, run.count, dv_, values_.as<float>() + run.first_slot * dv_, dv_);
    if (keys_.bytes())
      kernels.widen(keys.k_type(), k, run.k_stride, run.count, d_, keys_.as<float>() + run.first_slot * d_, d_);
    if (run.first_slot == 0 && run.count == count_) {
      for (int64_t j = 0; j < count_; j += kPanelKeys)
        kernels.pack(keys.k_type(), k + j * run.k_stride * size_of(keys.k_type()), run.k_stride,
                     std::min<int64_t>(kPanelKeys, count_ - j), d_, panels_.as<float>() + j * d_);
      continue;
    }
    // Runs end inside panels: element by element.
    for (int64_t j = 0; j < run.count; ++j) {
      const int64_t slot = run.first_slot + j;
      float* to = panels_.as<float>() + slot / kPanelKeys * d_ * kPanelKeys + slot % kPanelKeys;
      for (int64_t c = 0; c < d_; ++c)
        kernels.widen(keys.k_type(), k + (j * run.k_stride + c) * size_of(keys.k_type()), 1, 1, 1, to + c * kPanelKeys,
                      1);
    }
  }
}

void RowWorkspace::reserve(int64_t rows, int64_t keys, const Problem& p) {
  head.reserve(keys, p.d, p.dv);
  q = Buffer(rows * p.d * 4);
  s = Buffer(std::max<int64_t>(1, rows * padded_keys(keys)) * 4);
  ends.resize(static_cast<size_t>(rows));
}

int64_t hide(const Problem& p, const Keys& keys, int64_t b, int64_t i, float* s) {
  const int64_t position = p.position(b, i);
  const Visible seen = visible_from(position, p.options, p.document(b, position));
  auto slots = [&](KeyRange r) {
    return r.begin < r.end ? KeyRange{keys.lower_slot(r.begin), keys.lower_slot(r.end)} : KeyRange{};
  };
  const KeyRange a = slots(seen.a), z = slots(seen.b);
  int64_t end = 0;
  for (const KeyRange& r : {a, z}) {
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
  for (int64_t r = 0; r < count; ++r) {
    float* row = s + r * stride;
    ends[r] = hide(p, keys, b, first + r, row);
    if (!p.bias.data) continue;
    const float* bias = p.bias.at<float>({b, h, first + r});
    for (int64_t j = 0; j < ends[r]; ++j)
      if (row[j] != kHidden) row[j] += bias[j * p.bias.stride[3]];
  }
}

}  // namespace attend::exact
