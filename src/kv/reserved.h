#pragma once
// Where the rows of a store with reserved addresses lie: a region for the keys and one for the values of each head, in
// order of heads, each of whole pages of the system.
#include <cstdint>
#include <string_view>

#include "attend/kv/store.h"

namespace attend::kv {

struct Reserved {
  // Throws Error(kArgument), Error(kMemory).
  Reserved(std::string_view store, const StoreShape& shape, int64_t reserve);

  // Throws Error(kMemory) for more tokens than were reserved.
  void check(int64_t tokens) const;

  int64_t bytes() const { return heads * (k_region + v_region); }
  int64_t k_at(size_t head) const { return static_cast<int64_t>(head) * (k_region + v_region); }
  int64_t v_at(size_t head) const { return k_at(head) + k_region; }

  std::string_view store;
  int64_t tokens, heads, k_region, v_region;
};

}  // namespace attend::kv
