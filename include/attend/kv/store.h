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
  DType codec;            // type of stored keys and values
  int64_t context = 0;    // most tokens that a sequence will hold, for stores that reserve addresses; 0: not known
  DType v_codec = codec;  // of values, where it is another
  // A stage of a staged store (attend/kv/staged_store.h): rows come coded, in any type, and have no positions.
  bool part = false;
};

// Not for use by two threads at once; stores that share memory (fork()) may each be used by a thread of their own.
struct Store : Component {
  virtual const StoreShape& shape() const = 0;

  // Converts and appends k [Hkv, T, D] and v [Hkv, T, Dv] (f32) of one layer; positions ascend beyond those present.
  // Throws Error(kArgument), Error(kMemory), Error(kFile); on failure no key changes.
  virtual void append(int layer, const View& k, const View& v, std::span<const int32_t> position) = 0;

  // Appends keys that are coded already, of the store's codec, to one head. Errors as append().
  virtual void append_coded(int layer, int head, const KeyView& keys) = 0;

  // Valid until the next append, keep or settle on that layer.
  virtual KeyView keys(int layer, int head) const = 0;

  // Keeps the slots given (ascending) and gives memory back. Throws Error(kArgument), and Error(kMemory) where kept
  // keys move to other memory; on failure no key changes.
  virtual void keep(int layer, int head, std::span<const int64_t> slots) = 0;

  // Keeps the first `count` slots and gives memory back: keep() of a prefix, but O(log keys) where no memory is freed.
  // Throws Error(kArgument).
  virtual void cut(int layer, int head, int64_t count) = 0;

  // `tokens` of the text were seen: keys that the codec wants otherwise at their age are coded anew, at their slots.
  // True if there were any. Errors as keep().
  virtual bool settle(int64_t tokens) { return (void)tokens, false; }

  // Attention is about to read this layer, to which keys were appended in another part of a staged store.
  virtual void turn_to(int layer) { (void)layer; }

  virtual void clear() = 0;

  // A store of the same keys, independent of this one: a text that goes on in several ways (samples, beams).
  virtual std::unique_ptr<Store> fork() const = 0;

  virtual int64_t bytes() const = 0;                // memory held for keys, values and positions
  virtual int64_t disk_bytes() const { return 0; }  // held by files, in memory or not
};

// Opens stores of one kind: made by registry entries of Kind::kStore. Stores that one factory opened may share memory.
struct StoreFactory : Component {
  virtual std::unique_ptr<Store> open(const StoreShape& shape) const = 0;
};

// Throws Error(kArgument) for a shape that is not positive, for a codec other than f32, f16, bf16, q8_0 and q4_0 where
// it is no part, and for quantised rows that are no multiples of 32 elements. What every make_*_store() does first.
void check_store_shape(const StoreShape& shape);

// One growing buffer for each layer and head. Capacity follows use in steps of an eighth, at least 32 tokens, and is
// given back once more than two steps stand empty. Positions are held only where they differ from slots.
std::unique_ptr<Store> make_contiguous_store(const StoreShape& shape);

}  // namespace attend
