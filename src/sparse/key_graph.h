#pragma once
// A graph over keys that a search walks towards those of the largest products with a query.
#include <cstdint>
#include <span>
#include <vector>

#include "attend/tensor/isa.h"
#include "attend/tensor/key_view.h"
#include "attend/tensor/state_bytes.h"

namespace attend {

// Rows of keys at any slots, as f32.
class AnyRows {
 public:
  AnyRows(const KeyView& keys, int64_t d, Isa isa) : keys_(keys), d_(d), isa_(isa) {}
  void read(int64_t slot, float* to) const;
  void fetch(int64_t slot) const;  // asks for it

 private:
  const KeyRun& run_of(int64_t slot) const;

  const KeyView& keys_;
  int64_t d_;
  Isa isa_;
};

class KeyGraph {
 public:
  // What a search keeps between calls; one for each that runs at once.
  struct Scratch {
    struct Place {
      float score;
      int32_t node;
      bool expanded;
    };
    std::vector<Place> pool;     // descending by score
    std::vector<uint32_t> seen;  // of nodes: the search that saw them
    uint32_t search = 0;
    std::vector<float> row, other;
    std::vector<int32_t> fresh;
    int64_t reads = 0;  // keys that were looked at
  };

  KeyGraph() = default;
  // Node i stands for the key of slot first + i. `degree`: edges of a node, half of them to keys near it, half to those
  // that queries want beside it.
  KeyGraph(int64_t first, int64_t degree, int64_t d, Isa isa) : first_(first), half_(degree / 2), d_(d), isa_(isa) {}

  int64_t first() const { return first_; }
  int64_t end() const { return first_ + nodes_; }

  // The first `count` nodes at once, under the guidance of queries [count, d].
  void build(const KeyView& keys, int64_t count, std::span<const float> queries, int64_t effort, Scratch& scratch);
  // The key of slot end() joins.
  void insert(const KeyView& keys, int64_t effort, Scratch& scratch);

  // Slots of about the `count` largest products with q, the largest first; `effort` of them are kept on the way.
  void search(const KeyView& keys, const float* q, int64_t count, int64_t effort, Scratch& scratch,
              std::vector<int64_t>& slots) const;
  // The graph itself, over at most `most` keys; load() throws Error(kFile) for what save() can't have written.
  void save(StateWriter& out) const;
  void load(StateReader& in, int64_t most);
  int64_t bytes() const { return static_cast<int64_t>((edges_.capacity() + used_.capacity()) * sizeof(int32_t)); }

 private:
  template <class Score>
  void walk(const AnyRows& rows, int64_t effort, int32_t skip, Scratch& scratch, const Score& score) const;
  void project(const KeyView& keys, std::span<const float> queries);
  void link(const AnyRows& rows, int32_t node, int64_t effort, Scratch& scratch);
  void add_near(const AnyRows& rows, int32_t node, int32_t other, Scratch& scratch);
  bool add_wanted(int32_t node, int32_t other);
  bool diverse(const AnyRows& rows, std::span<const int32_t> chosen, const float* row, float distance,
               Scratch& scratch) const;

  int32_t* wanted(int32_t node) { return edges_.data() + node * 2 * half_; }
  int32_t* near(int32_t node) { return edges_.data() + (node * 2 + 1) * half_; }
  int32_t& wanted_count(int32_t node) { return used_[static_cast<size_t>(2 * node)]; }
  int32_t& near_count(int32_t node) { return used_[static_cast<size_t>(2 * node + 1)]; }

  int64_t first_ = 0, nodes_ = 0, half_ = 0, d_ = 0;
  Isa isa_ = Isa::kAvx2;
  std::vector<int32_t> edges_;    // [nodes, 2, half]: wanted, near
  std::vector<int32_t> used_;     // [nodes, 2]
  std::vector<int32_t> entries_;  // where searches begin
};

}  // namespace attend
