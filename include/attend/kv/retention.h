#pragma once
// Which keys stay in a store.
#include <cstdint>
#include <memory>
#include <vector>

#include "attend/tensor/key_view.h"
#include "attend/tensor/operator.h"

namespace attend {

struct Retention : Component {
  // Acts only when the number of tokens seen is a multiple of this, or at the prompt's end; >= 1.
  virtual int64_t stride() const = 0;

  // Slots of `keys` to keep, ascending. `next_position` is that of the next token.
  virtual void choose(const KeyView& keys, int64_t next_position, std::vector<int64_t>& slots) const = 0;

  // True if only keys that no later query can see are dropped: then it may act at any time without changing a result.
  virtual bool lossless() const { return false; }
};

// Keeps every key.
std::unique_ptr<Retention> make_keep_all();

// Keeps what `mechanism` (which must outlive it) can still see: Operator::needed_from. Lossless.
std::unique_ptr<Retention> make_implied_retention(const Operator& mechanism);

// Slots of `keys` whose positions lie in [range.begin, range.end): a half-open range of slots. O(log n).
KeyRange slots_in(const KeyView& keys, const KeyRange& range);

}  // namespace attend
