#include "selective_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>

#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"
#include "by_position.h"

namespace attend {
namespace {

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
                                 std::span<const Operator* const> mechanisms, bool drops_keys, bool in_f32, Isa isa)
    : graph_(graph), in_f32_(in_f32) {
  const auto refuse = [&](std::string_view rule) {
    throw Error(ErrorKind::kUnsupported, "policy", selector.name, "", rule);
  };
  const AttentionLayer& first = graph.layers.front();
  const auto made = registry.make<Selector>(selector);
  for (size_t layer = 0; layer < mechanisms.size(); ++layer) {
    by_position_.push_back(goes_by_positions(*mechanisms[layer]));
    if (governs(static_cast<int>(layer))) drops_keys |= !sees_all(*mechanisms[layer]);
  }
  if (drops_keys && made->shares_slots())
    refuse("reads in one layer the slots that another chose: layers must hold the same keys");
  index_ = made->open({.layers = static_cast<int>(graph.layers.size()),
                       .kv_heads = first.kv_heads,
                       .group = first.heads / first.kv_heads,
                       .d = first.d,
                       .isa = isa});
  for (size_t layer = 0; layer < mechanisms.size(); ++layer) {
    const int l = static_cast<int>(layer);
    if (!governs(l)) continue;
    if (mechanisms[layer]->turns())
      refuse("ranks keys by their products with the query, which a mechanism that turns both has not made yet");
    if (!mechanisms[layer]->gives_weights() &&
        (index_->wants_weights(l) || index_->wants_queries(l) || made->gives_log_weights()))
      refuse("goes by the weights of a softmax, which the policy's mechanism has not");
  }
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
    for (const KeyRange& range : view.selection.slots) bytes_read_ += bytes_of(keys[h], range, l.d, l.dv);
    if (governed) bytes_read_ += view.selection.index_bytes;
  }
  if (everything) return nullptr;
  const bool by_position = by_position_[static_cast<size_t>(layer)];
  const int64_t rows = in_f32_ ? group : SelectedKeys::kManyRows;
  each_head(threads, static_cast<int64_t>(keys.size()),
            [&](size_t h) { views_[h].keys.cut(keys[h], views_[h].selection, l.d, l.dv, by_position, rows); });
  for (size_t h = 0; h < keys.size(); ++h) chosen_[h] = views_[h].keys.view();
  position_ = static_cast<int32_t>((by_position && keys[0].position.empty() ? keys[0].count() : most) - 1);
  if (by_position && !keys[0].position.empty()) position_ = keys[0].position.back();
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

WeightPlaces SelectiveReader::places(std::span<const KeyView> keys) {
  const size_t group = weights_.size() / keys.size();
  places_.clear();
  for (size_t h = 0; h < weights_.size(); ++h) {
    weights_[h].assign(static_cast<size_t>(keys[h / group].count()), 0.0f);
    places_.push_back({.sum = weights_[h].data()});
  }
  return {places_};
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

void SelectiveReader::save(StateWriter& out) const {
  for (int layer = 0; layer < static_cast<int>(graph_.layers.size()); ++layer)
    for (size_t h = 0; governs(layer) && h < views_.size(); ++h) index_->save(layer, static_cast<int>(h), out);
}

void SelectiveReader::load(const Store& store, int64_t position, StateReader& in, int threads) {
  std::vector<KeyView> keys;
  for (int layer = 0; layer < static_cast<int>(graph_.layers.size()); ++layer) {
    if (!governs(layer)) continue;
    keys.clear();
    for (size_t h = 0; h < views_.size(); ++h) keys.push_back(store.keys(layer, static_cast<int>(h)));
    moved(layer, keys, threads);
    for (size_t h = 0; h < views_.size(); ++h) index_->load(layer, static_cast<int>(h), keys[h], position, in);
  }
}

void SelectiveReader::clear() {
  index_->clear();
  bytes_read_ = 0;
}

}  // namespace attend
