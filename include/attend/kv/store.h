#pragma once
// Where keys and values lie: per layer and kv head, appended in order of position, kept by slot.
#include <cstdint>
#include <memory>
#include <span>

#include "attend/tensor/key_view.h"
#include "attend/tensor/operator.h"
#include "attend/tensor/view.h"

namespace attend {

struct StoreShape {
  int layers, kv_heads;
  int64_t d, dv;
  DType codec;  // type of stored keys and values
};

struct Store : Component {
  // Converts and appends k [Hkv, T, D] and v [Hkv, T, Dv] (f32) of one layer; positions ascend beyond those present.
  // Throws Error(kArgument), Error(kMemory); on failure nothing changes.
  virtual void append(int layer, const View& k, const View& v, std::span<const int32_t> position) = 0;

  // Valid until the next append or keep on that layer.
  virtual KeyView keys(int layer, int head) const = 0;

  // Keeps the slots given (ascending) and gives memory back.
  virtual void keep(int layer, int head, std::span<const int64_t> slots) = 0;

  virtual void clear() = 0;
  virtual int64_t bytes() const = 0;  // memory held for keys, values and positions
};

// Opens stores of one kind: made by registry entries of Kind::kStore.
struct StoreFactory : Component {
  virtual std::unique_ptr<Store> open(const StoreShape& shape) const = 0;
};

// One growing buffer for each layer and head. Capacity follows use in steps of an eighth, at least 32 tokens, and is
// given back once more than two steps stand empty. Positions are held only where they differ from slots.
// Throws Error(kArgument) for a shape that is not positive, for a codec other than f32, f16, bf16, q8_0 and q4_0, and
// for one of the last two with rows that are no multiples of 32 elements.
std::unique_ptr<Store> make_contiguous_store(const StoreShape& shape);

}  // namespace attend
