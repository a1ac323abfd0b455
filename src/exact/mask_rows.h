#pragma once
// A block mask as the kernel wants it: rows of bits over the columns of a split.
#include <algorithm>
#include <span>

#include "attend/exact/block_mask.h"
#include "exact/keys.h"
#include "exact/workspace.h"

namespace attend::exact {

// Whether a query at one of `positions` sees a block of the mask that begins in [begin, end), multiples of 64.
inline bool mask_reaches(const BlockMask& mask, int64_t batch, int64_t head, std::span<const int32_t> positions,
                         int64_t begin, int64_t end) {
  int64_t last_row = -1;
  for (int64_t position : positions) {
    const int64_t row = position / BlockMask::kBlock;
    if (position < 0 || row == last_row) continue;
    last_row = row;
    for (int64_t k = begin / BlockMask::kBlock; k < std::min(end / BlockMask::kBlock, mask.key_blocks()); ++k)
      if (mask.block(batch, head, row, k) != BlockMask::kEmpty) return true;
  }
  return false;
}

// The row of one query: `to` gets kMaskWords words, bit c for column c of the split.
inline void gather_mask_row(const BlockMask& mask, const Keys& keys, const Split& split, int64_t batch, int64_t head,
                            int64_t query, uint64_t* to) {
  std::fill_n(to, kMaskWords, 0);
  if (query < 0) return;
  const int64_t begin = keys.position(split.first_slot), last = keys.position(split.first_slot + split.cols - 1);
  if (begin % BlockMask::kBlock == 0 && last - begin + 1 == split.cols) {
    for (int64_t word = 0; word * BlockMask::kBlock < split.cols; ++word)
      to[word] = mask.row(batch, head, query, begin / BlockMask::kBlock + word);
    return;
  }
  int64_t key_block = -1;
  uint64_t row = 0;
  for (int c = 0; c < split.cols; ++c) {
    const int64_t position = keys.position(split.first_slot + c);
    if (position / BlockMask::kBlock != key_block) {
      key_block = position / BlockMask::kBlock;
      row = mask.row(batch, head, query, key_block);
    }
    to[c / 64] |= (row >> position % BlockMask::kBlock & 1) << c % 64;
  }
}

}  // namespace attend::exact
