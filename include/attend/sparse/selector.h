#pragma once
// What a query reads of the keys that a store holds: chosen for each decoded token, layer and kv head, then attended to
// exactly. Keys stay where they are; those that were not chosen are not read.
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "attend/tensor/isa.h"
#include "attend/tensor/key_view.h"
#include "attend/tensor/operator.h"
#include "attend/tensor/state_bytes.h"

namespace attend {

// The heads of a model that an index serves.
struct SelectorShape {
  int layers, kv_heads, group;  // group: query heads that read a kv head
  int64_t d;
  Isa isa;
};

struct Selection {
  bool everything = false;
  std::vector<KeyRange> slots;  // otherwise: ascending, disjoint, none empty; the newest key among them
  // Added to the scores of the chosen keys, [group, chosen]: -inf hides a key from a query head. Empty: 0.
  std::vector<float> log_weights;
  int64_t index_bytes = 0;  // read of the index to choose

  int64_t count() const;
};

// Appends [begin, end) to ascending ranges, joined to the last one if they touch or overlap.
void append_range(std::vector<KeyRange>& ranges, KeyRange range);

// The queries of a layer's newest keys, of the heads that read one kv head: row r of head g lies at
// q + r * row_stride + g * d, its ln of the sum of exp(scale * score) at lse[g * lse_stride + r]. A row that read a
// part of the keys has the sum over that part.
struct NewQueries {
  const float* q;
  const float* lse;
  int64_t rows, row_stride, lse_stride;
  float scale;
};

// What is known of one session's keys. Heads are independent: calls for two of them may run at once.
class SelectorIndex {
 public:
  virtual ~SelectorIndex() = default;

  // Keys from slot `from` on are new, or other than before.
  virtual void update(int layer, int kv_head, const KeyView& keys, int64_t from) = 0;

  // Whether cut() can make it what it was when the head had its first `count` keys alone.
  virtual bool can_cut(int layer, int kv_head, int64_t count) const {
    (void)layer, (void)kv_head, (void)count;
    return false;
  }
  // Keys from slot `count` on went, as if they had never come. Only after can_cut().
  virtual void cut(int layer, int kv_head, int64_t count) { (void)layer, (void)kv_head, (void)count; }

  // What it knows of a head that the keys alone don't tell, and back: load() comes after update() of all of these keys;
  // `next`: the position of the next token. Throws Error(kFile) for bytes that can't be what save() wrote.
  virtual void save(int layer, int kv_head, StateWriter& out) const { (void)layer, (void)kv_head, (void)out; }
  virtual void load(int layer, int kv_head, const KeyView& keys, int64_t next, StateReader& in) {
    (void)layer, (void)kv_head, (void)keys, (void)next, (void)in;
  }

  // What the queries [group, d] of the newest token read.
  virtual void select(int layer, int kv_head, const KeyView& keys, const float* q, Selection& selection) = 0;

  // Whether an index wants to know what a layer's queries weighed where they read everything; `weights` [group, keys].
  virtual bool wants_weights(int layer) const {
    (void)layer;
    return false;
  }
  virtual void weighed(int layer, int kv_head, const float* q, std::span<const std::vector<float>> weights);

  // Whether an index wants to know the queries of a layer's new keys, in prompts too; they are told after the layer
  // ran.
  virtual bool wants_queries(int layer) const {
    (void)layer;
    return false;
  }
  virtual void queried(int layer, int kv_head, const KeyView& keys, const NewQueries& queries);

  virtual void clear() = 0;
  virtual int64_t bytes() const = 0;  // held
};

struct Selector : Component {
  virtual std::unique_ptr<SelectorIndex> open(const SelectorShape& shape) const = 0;

  // Keys a head from which choosing and reading costs a decoded token no more than exact attention over all of them,
  // with heads of 64 or more (`attend bench sparse` holds it against that); 0: none is known.
  virtual int64_t pays_from() const { return 0; }

  // Whether Selection::log_weights are given: they are those of a softmax.
  virtual bool gives_log_weights() const { return false; }

  // Whether slots chosen in one layer are read in others, so that all must hold the same keys.
  virtual bool shares_slots() const { return false; }
};

}  // namespace attend
