#pragma once
// Rows of keys at ascending slots, whatever runs they lie in.
#include <cstddef>

#include "attend/tensor/key_view.h"

namespace attend {

class RowsOf {
 public:
  explicit RowsOf(const KeyView& keys) : run_(keys.runs.begin()) {}

  // The key of a slot; slots must not descend from call to call.
  RowRun at(int64_t slot) {
    while (run_->first_slot + run_->count <= slot) ++run_;
    return run_->keys().from(slot - run_->first_slot);
  }
  // Asks for a row that will be read soon: rows at random wait for memory otherwise.
  void fetch(int64_t slot, int64_t d) {
    const RowRun key = at(slot);
    const auto* row = static_cast<const std::byte*>(key.data);
    for (int64_t line = 0; line < row_bytes(key.type, d); line += 64) __builtin_prefetch(row + line);
  }

 private:
  std::span<const KeyRun>::iterator run_;
};

}  // namespace attend
