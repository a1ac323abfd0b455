#include "selective_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <limits>

#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"

namespace attend {
namespace {

constexpr int64_t kShortRun = 8;  // rows on average, below which they are gathered

// f(kv head), by several threads; the first error is thrown here.
template <class F>
void each_head(int threads, int64_t heads, const F& f) {
  std::vector<std::exception_ptr> errors(static_cast<size_t>(heads));
  parallel_for(threads, heads, [&](int64_t h, int) {
    try {
      f(static_cast<size_t>(h));
    } catch (...) {
      errors[static_cast<size_t>(h)] = std::current_exception();
    }
  });
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
}

}  // namespace

SelectiveReader::SelectiveReader(const Graph& graph, const Spec& selector, const Registry& registry,
                                 std::span<const Operator* const> mechanisms, bool drops_keys, int64_t key_bytes,
                                 Isa isa)
    : graph_(graph), key_bytes_(key_bytes) {
  for (size_t layer = 0; layer < mechanisms.size(); ++layer) {
    const std::vector<KeyRange> needed = mechanisms[layer]->needed_from(std::numeric_limits<int32_t>::max());
    const bool sees_all = needed.size() == 1 && needed[0] == KeyRange{0, kNoEnd};
    if (governs(static_cast<int>(layer)) &&
        (!sees_all || mechanisms[layer]->turns() || !mechanisms[layer]->gives_weights()))
      throw Error(ErrorKind::kUnsupported, "policy", selector.name, "",
                  "goes with plain softmax alone: it renumbers the keys that it reads");
  }
  const AttentionLayer& first = graph.layers.front();
  const auto made = registry.make<Selector>(selector);
  if (drops_keys && made->shares_slots())
    throw Error(ErrorKind::kUnsupported, "policy", selector.name, "",
                "reads in one layer the slots that another chose: layers must hold the same keys");
  index_ = made->open({.layers = static_cast<int>(graph.layers.size()),
                       .kv_heads = first.kv_heads,
                       .group = first.heads / first.kv_heads,
                       .d = first.d,
                       .isa = isa});
  views_.resize(static_cast<size_t>(first.kv_heads));
  chosen_.resize(views_.size());
  weights_.resize(static_cast<size_t>(first.heads));
}

void SelectiveReader::appended(int layer, std::span<const KeyView> keys, int64_t count, int threads) {
  if (!governs(layer)) return;
  each_head(threads, static_cast<int64_t>(keys.size()),
            [&](size_t h) { index_->update(layer, static_cast<int>(h), keys[h], keys[h].count() - count); });
}

void SelectiveReader::moved(int layer, std::span<const KeyView> keys, int threads) {
  if (!governs(layer)) return;
  each_head(threads, static_cast<int64_t>(keys.size()),
            [&](size_t h) { index_->update(layer, static_cast<int>(h), keys[h], 0); });
}

bool SelectiveReader::can_cut(int layer, std::span<const int64_t> counts) const {
  for (size_t h = 0; h < counts.size(); ++h)
    if (governs(layer) && !index_->can_cut(layer, static_cast<int>(h), counts[h])) return false;
  return true;
}

void SelectiveReader::cut(int layer, std::span<const int64_t> counts) {
  for (size_t h = 0; h < counts.size(); ++h)
    if (governs(layer)) index_->cut(layer, static_cast<int>(h), counts[h]);
}

// The stored runs cut to the chosen slots, which are numbered anew.
void SelectiveReader::choose_runs(const KeyView& keys, View& view) const {
  view.runs.clear();
  int64_t slot = 0;
  auto run = keys.runs.begin();
  for (const KeyRange& range : view.selection.slots)
    for (int64_t at = range.begin; at < range.end;) {
      while (run->first_slot + run->count <= at) ++run;
      const int64_t first = at - run->first_slot, count = std::min(range.end - at, run->count - first);
      KeyRun part = *run;
      part.k = static_cast<const std::byte*>(run->k) + first * run->k_stride * size_of(keys.k_type);
      part.v = static_cast<const std::byte*>(run->v) + first * run->v_stride * size_of(keys.v_type);
      part.first_slot = slot;
      part.count = count;
      view.runs.push_back(part);
      slot += count;
      at += count;
    }
}

// Copies the chosen rows side by side. Single rows come from memory at random: asked for well ahead, they arrive at its
// bandwidth instead of its latency.
void SelectiveReader::gather(const KeyView& keys, const AttentionLayer& layer, View& view) const {
  constexpr size_t kAhead = 16;  // runs
  constexpr int64_t kLine = 64;  // bytes
  const int64_t k_row = row_bytes(keys.k_type, layer.d), v_row = row_bytes(keys.v_type, layer.dv);
  const int64_t count = view.selection.count();
  std::byte *k = view.rows.data(), *v = k + count * k_row;
  auto fetch = [](const void* from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(static_cast<const std::byte*>(from) + at);
  };
  for (size_t i = 0; i < view.runs.size(); ++i) {
    if (i + kAhead < view.runs.size()) {
      const KeyRun& later = view.runs[i + kAhead];
      fetch(later.k, k_row), fetch(later.v, v_row);
    }
    const KeyRun& run = view.runs[i];
    for (int64_t r = 0; r < run.count; ++r, k += k_row, v += v_row) {
      std::memcpy(k, static_cast<const std::byte*>(run.k) + r * run.k_stride * size_of(keys.k_type),
                  static_cast<size_t>(k_row));
      std::memcpy(v, static_cast<const std::byte*>(run.v) + r * run.v_stride * size_of(keys.v_type),
                  static_cast<size_t>(v_row));
    }
  }
  view.runs.assign(1, {.k = view.rows.data(),
                       .v = view.rows.data() + count * k_row,
                       .k_stride = k_row / size_of(keys.k_type),
                       .v_stride = v_row / size_of(keys.v_type),
                       .first_slot = 0,
                       .count = count});
}

const Tensors* SelectiveReader::read(int layer, std::span<const KeyView> keys, const float* q, int threads) {
  const AttentionLayer& l = graph_.layers[static_cast<size_t>(layer)];
  const int64_t group = l.heads / l.kv_heads;
  const bool governed = governs(layer);
  if (governed)
    each_head(threads, static_cast<int64_t>(keys.size()), [&](size_t h) {
      views_[h].selection = Selection();
      index_->select(layer, static_cast<int>(h), keys[h], q + static_cast<int64_t>(h) * group * l.d,
                     views_[h].selection);
    });
  bool everything = true, weighted = false;
  int64_t most = 0;
  for (size_t h = 0; h < keys.size(); ++h) {
    View& view = views_[h];
    if (!governed) view.selection.everything = true;
    if (view.selection.everything) {
      view.selection.slots.assign(1, {0, keys[h].count()});
      view.selection.log_weights.clear();
    }
    everything &= view.selection.everything;
    weighted |= !view.selection.log_weights.empty();
    const int64_t count = view.selection.count();
    most = std::max(most, count);
    bytes_read_ += count * key_bytes_ + (governed ? view.selection.index_bytes : 0);
  }
  if (everything) return nullptr;
  for (size_t h = 0; h < keys.size(); ++h) {
    View& view = views_[h];
    choose_runs(keys[h], view);
    view.gathered = view.selection.count() < kShortRun * static_cast<int64_t>(view.runs.size());
    const int64_t bytes = view.selection.count() * (row_bytes(keys[h].k_type, l.d) + row_bytes(keys[h].v_type, l.dv));
    if (view.gathered && view.rows.bytes() < bytes) view.rows = Buffer(bytes * 5 / 4);
  }
  each_head(threads, static_cast<int64_t>(keys.size()), [&](size_t h) {
    if (views_[h].gathered) gather(keys[h], l, views_[h]);
  });
  for (size_t h = 0; h < keys.size(); ++h)
    chosen_[h] = {.runs = views_[h].runs, .k_type = keys[h].k_type, .v_type = keys[h].v_type, .position = {}};
  position_ = static_cast<int32_t>(most - 1);
  arguments_.clear();
  arguments_.emplace("k", std::span<const KeyView>(chosen_));
  arguments_.emplace("q_positions", dense_view(&position_, DType::kI32, {1, 1}));
  if (weighted) {
    bias_.assign(static_cast<size_t>(l.heads * most), 0.0f);
    for (size_t h = 0; h < keys.size(); ++h) {
      const std::vector<float>& own = views_[h].selection.log_weights;
      const int64_t count = views_[h].selection.count();
      for (int64_t g = 0; g < group && !own.empty(); ++g)
        std::copy_n(own.begin() + g * count, count, bias_.begin() + (static_cast<int64_t>(h) * group + g) * most);
    }
    arguments_.emplace("bias", dense_view(bias_.data(), DType::kF32, {1, l.heads, 1, most}));
  }
  return &arguments_;
}

std::span<float* const> SelectiveReader::places(std::span<const KeyView> keys) {
  const size_t group = weights_.size() / keys.size();
  places_.clear();
  for (size_t h = 0; h < weights_.size(); ++h) {
    weights_[h].assign(static_cast<size_t>(keys[h / group].count()), 0.0f);
    places_.push_back(weights_[h].data());
  }
  return places_;
}

void SelectiveReader::weighed(int layer, const float* q) {
  const AttentionLayer& l = graph_.layers[static_cast<size_t>(layer)];
  const size_t group = static_cast<size_t>(l.heads / l.kv_heads);
  for (size_t h = 0; h < views_.size(); ++h)
    if (views_[h].selection.everything)
      index_->weighed(layer, static_cast<int>(h), q + static_cast<int64_t>(h * group) * l.d,
                      std::span(weights_).subspan(h * group, group));
}

void SelectiveReader::queried(int layer, std::span<const KeyView> keys, const float* q, const float* lse, int64_t rows,
                              int threads) {
  const AttentionLayer& l = graph_.layers[static_cast<size_t>(layer)];
  const int64_t group = l.heads / l.kv_heads;
  each_head(threads, static_cast<int64_t>(keys.size()), [&](size_t h) {
    const int64_t first = static_cast<int64_t>(h) * group;
    index_->queried(layer, static_cast<int>(h), keys[h],
                    {.q = q + first * l.d,
                     .lse = lse + first * rows,
                     .rows = rows,
                     .row_stride = l.heads * l.d,
                     .lse_stride = rows,
                     .scale = static_cast<float>(l.scale)});
  });
}

void SelectiveReader::clear() {
  index_->clear();
  bytes_read_ = 0;
}

}  // namespace attend
