#pragma once
// Rows of keys at ascending slots, whatever runs they lie in.
#include <cstddef>

#include "attend/tensor/key_view.h"

namespace attend {

class RowsOf {
 public:
  explicit RowsOf(const KeyView& keys) : keys_(keys), run_(keys.runs.begin()) {}

  // Where the key of a slot lies; slots must not descend from call to call.
  const std::byte* at(int64_t slot) {
    while (run_->first_slot + run_->count <= slot) ++run_;
    return static_cast<const std::byte*>(run_->k) + (slot - run_->first_slot) * run_->k_stride * size_of(keys_.k_type);
  }
  // Asks for a row that will be read soon: rows at random wait for memory otherwise.
  void fetch(int64_t slot, int64_t d) {
    const std::byte* row = at(slot);
    for (int64_t line = 0; line < row_bytes(keys_.k_type, d); line += 64) __builtin_prefetch(row + line);
  }

 private:
  const KeyView& keys_;
  std::span<const KeyRun>::iterator run_;
};

}  // namespace attend
