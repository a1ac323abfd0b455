#pragma once
// A policy's selector in a session: which keys the newest token of each layer reads.
#include <memory>
#include <span>
#include <vector>

#include "attend/kv/store.h"
#include "attend/lm/graph.h"
#include "attend/sparse/selected_keys.h"
#include "attend/tensor/registry.h"

namespace attend {

class SelectiveReader {
 public:
  // `drops_keys`: the policy has a retention or a plan. `in_f32`: mechanisms multiply in f32. Throws Error(kUnsupported)
  // for what can't go together.
  SelectiveReader(const Graph& graph, const Spec& selector, const Registry& registry,
                  std::span<const Operator* const> mechanisms, bool drops_keys, bool in_f32, Isa isa);

  // Layers whose own window is small are read whole, and not indexed.
  bool governs(int layer) const { return graph_.layers[static_cast<size_t>(layer)].window == 0; }

  // The last `count` keys of each head are new. Heads may hold different numbers of keys.
  void appended(int layer, std::span<const KeyView> keys, int64_t count, int threads);
  // Keys were dropped: what is left lies at other slots.
  void moved(int layer, std::span<const KeyView> keys, int threads);

  // Whether cut() can take a layer's index back to heads of so many keys.
  bool can_cut(int layer, std::span<const int64_t> counts) const;
  void cut(int layer, std::span<const int64_t> counts);

  // What the newest token, queries [heads, d], reads of the layer: arguments of the mechanism, or none where it reads
  // everything. Valid until the next call.
  const Tensors* read(int layer, std::span<const KeyView> keys, const float* q, int threads);

  // Whether the index wants weights of the layer's last read; where they go, a place for each query head.
  bool wants_weights(int layer) const { return governs(layer) && index_->wants_weights(layer); }
  WeightPlaces places(std::span<const KeyView> keys);
  void weighed(int layer, const float* q);

  // Whether the index wants the queries of new keys, [rows, heads * d], with the lse of their rows, [heads, rows].
  bool wants_queries(int layer) const { return governs(layer) && index_->wants_queries(layer); }
  void queried(int layer, std::span<const KeyView> keys, const float* q, const float* lse, int64_t rows, int threads);

  // What the index knows beside keys, and back, from keys that no index was told of, of `position` tokens. Throws as
  // SelectorIndex::load().
  void save(StateWriter& out) const;
  void load(const Store& store, int64_t position, StateReader& in, int threads);

  void clear();
  int64_t bytes() const { return index_->bytes(); }
  // Of keys, values and the index, for the last token.
  int64_t bytes_read() const { return bytes_read_; }
  void begin_token() { bytes_read_ = 0; }

 private:
  struct View {  // the chosen keys of one kv head
    Selection selection;
    SelectedKeys keys;
  };

  const Graph& graph_;
  std::unique_ptr<SelectorIndex> index_;
  std::vector<char> by_position_;  // of layers: whether what a key gets there depends on positions
  bool in_f32_;
  int64_t bytes_read_ = 0;
  std::vector<View> views_;
  std::vector<KeyView> chosen_;
  std::vector<float> bias_;
  int32_t position_ = 0;
  Tensors arguments_;
  std::vector<std::vector<float>> weights_;
  std::vector<KeyStatistics> places_;
};

}  // namespace attend
