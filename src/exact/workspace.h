#pragma once
// What one thread needs for one block of queries, carved out of its scratch memory.

#include "attend/simd/split.h"
#include "attend/tensor/key_view.h"

namespace attend::exact {

inline constexpr int64_t kMaskWords = kSplitPositions / 64;  // of a query's row in one split

struct Block {
  int64_t batch, kv_head, first, tokens;  // queries [first, first + tokens)
};

// Consecutive slots inside one split of 512 positions.
struct Split {
  int64_t first_slot;
  int cols;
};

struct SlotRanges {
  KeyRange a, b;
};

constexpr int64_t align64(int64_t n) {
  return (n + 63) / 64 * 64;
}

// Hands out consecutive arrays of a buffer, each at a multiple of 64 bytes; without one it only counts.
class Carver {
 public:
  explicit Carver(std::byte* base) : base_(base) {}
  template <class T>
  void take(T*& pointer, int64_t count) {
    pointer = base_ ? reinterpret_cast<T*>(base_ + bytes_) : nullptr;
    bytes_ += align64(count * static_cast<int64_t>(sizeof(T)));
  }
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* base_;
  int64_t bytes_ = 0;
};

struct Workspace {
  const float* queries;  // q, or the tensor's own where they lie as a kernel takes them
  float *q, *max, *sum, *acc, *split_max, *split_sum, *split_acc;
  float *given_max, *given_inverse;
  int32_t* q_position;
  SlotRanges* slots;      // [tokens], over the whole view
  ColumnRanges* visible;  // [tokens], of the current split
  uint64_t* mask;         // [heads of the mask, tokens, kMaskWords], of the current split
  std::byte* split;

  // Bytes that it takes.
  int64_t carve(std::byte* base, int64_t tokens, int64_t group, int64_t d, int64_t dv) {
    Carver carver(base);
    const int64_t rows = tokens * group;
    carver.take(q, rows * d);
    for (float** p : {&max, &sum, &split_max, &split_sum, &given_max, &given_inverse}) carver.take(*p, rows);
    for (float** p : {&acc, &split_acc}) carver.take(*p, rows * padded_dv(dv));
    carver.take(q_position, tokens);
    carver.take(slots, tokens);
    carver.take(visible, tokens);
    carver.take(mask, rows * kMaskWords);
    carver.take(split, split_scratch_bytes(d, dv));
    return carver.bytes();
  }
};

}  // namespace attend::exact
