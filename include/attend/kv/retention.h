#pragma once
// Which keys stay in a store.
#include <cstdint>
#include <vector>

#include "attend/tensor/key_view.h"
#include "attend/tensor/operator.h"

namespace attend {

struct Retention : Component {
  // Acts only when the number of tokens seen is a multiple of this, or at the prompt's end; >= 1.
  virtual int64_t stride() const = 0;

  // Slots of `keys` to keep, ascending. `next_position` is that of the next token.
  virtual void choose(const KeyView& keys, int64_t next_position, std::vector<int64_t>& slots) const = 0;
};

}  // namespace attend
