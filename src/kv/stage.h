#pragma once
// One stage of a staged store (attend/kv/staged_store.h): the keys of an age.
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "attend/kv/codec.h"
#include "attend/kv/store.h"

namespace attend::kv {

// Throws Error(kArgument) for stages that make no staged store.
void check_stages(const Codec& codec);

// Keys of one head in one stage: `count` rows, of keys by channel in groups of so many rows.
struct Part {
  int64_t count = 0;
  std::vector<int32_t> groups;
};

struct Stage {
  // Stores of `stores` for a whole of `shape`.
  Stage(const StoreFactory& stores, const StoreShape& shape, const CodecStage& given);

  // Keeps the rows given of a head, and the groups that have any of them. Throws what Store::keep() does, and then
  // keeps everything.
  void keep(Part& part, int layer, int head, std::span<const int64_t> slots);

  // Keeps the first `count` rows of a head, and the groups that have any of them.
  void cut(Part& part, int layer, int head, int64_t count);

  void turn_to(int layer) const {
    rows->turn_to(layer);
    if (groups) groups->turn_to(layer);
  }
  Stage fork() const { return {coding, rows->fork(), groups ? groups->fork() : nullptr}; }
  int64_t bytes() const { return rows->bytes() + (groups ? groups->bytes() : 0); }
  int64_t disk_bytes() const { return rows->disk_bytes() + (groups ? groups->disk_bytes() : 0); }

  CodecStage coding;
  std::unique_ptr<Store> rows;
  std::unique_ptr<Store> groups;  // scales as keys, offsets as values, a row a group; null: keys not by channel

 private:
  Stage(const CodecStage& given, std::unique_ptr<Store> own_rows, std::unique_ptr<Store> own_groups)
      : coding(given), rows(std::move(own_rows)), groups(std::move(own_groups)) {}
};

}  // namespace attend::kv
