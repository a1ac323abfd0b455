#pragma once
// A mask over positions, evaluated once into blocks of 64 x 64: where a block is empty the kernel does nothing, where
// it is full it runs no mask code, elsewhere it reads one bit a score.
//
//   auto dilated = [](int batch, int head, int i, int j) { return (i - j) % 4 == 0; };
//   const BlockMask mask = block_mask(dilated, {.queries = 4096, .keys = 4096}, context);
//   softmax_attention(qkv, {.causal = true}, out, context, {.mask = &mask});
//
// Source   Dong et al. 2024, arXiv:2412.05496, section 3.2 (full, partial and empty blocks).
#include <cstdint>
#include <functional>
#include <vector>

#include "attend/simd/hook.h"
#include "attend/tensor/context.h"

namespace attend {

// What a mask covers: positions [0, queries) x [0, keys). One mask may serve all batch entries or heads.
struct MaskSizes {
  int64_t batch = 1, heads = 1, queries = 0, keys = 0;
};

class BlockMask {
 public:
  static constexpr int64_t kBlock = 64;
  static constexpr int32_t kEmpty = -1, kFull = -2;

  // From a hook that makes scores 1 where a key is seen and 0 where not; `block_mask` below is how to come by one.
  // Cost: batch * heads * queries * keys calls; memory 4 bytes a block and 512 a partial one. Throws Error(kArgument)
  // for sizes below 1 (batch, heads) or 0, Error(kMemory), Error(kCancelled).
  BlockMask(const Hook& hook, const MaskSizes& sizes, Context& context);
  // Of whole blocks: sees(batch, head, query block, key block) is asked once a block; blocks of queries before the
  // first are empty. Cost: as many calls; throws as above but for Error(kCancelled).
  BlockMask(const MaskSizes& sizes, const std::function<bool(int64_t, int64_t, int64_t, int64_t)>& sees,
            int64_t first_query_block = 0);

  const MaskSizes& sizes() const { return sizes_; }
  int64_t query_blocks() const { return (sizes_.queries + kBlock - 1) / kBlock; }
  int64_t key_blocks() const { return (sizes_.keys + kBlock - 1) / kBlock; }
  // kEmpty, kFull, or a number for `words`.
  int32_t block(int64_t batch, int64_t head, int64_t query_block, int64_t key_block) const {
    const int64_t b = sizes_.batch == 1 ? 0 : batch, h = sizes_.heads == 1 ? 0 : head;
    return blocks_[static_cast<size_t>(((b * sizes_.heads + h) * query_blocks() + query_block) * key_blocks() +
                                       key_block)];
  }
  // 64 words, one a query; bit c: whether it sees key c of the block.
  const uint64_t* words(int32_t partial) const { return words_.data() + static_cast<size_t>(partial) * kBlock; }
  // 64 bits of one query's row: the keys of a block.
  uint64_t row(int64_t batch, int64_t head, int64_t query, int64_t key_block) const {
    const int32_t state = block(batch, head, query / kBlock, key_block);
    if (state == kEmpty) return 0;
    return state == kFull ? ~uint64_t{0} : words(state)[query % kBlock];
  }
  // Share of blocks that are not empty.
  double density() const;

 private:
  explicit BlockMask(const MaskSizes& sizes);  // checked, with room for its blocks

  MaskSizes sizes_;
  std::vector<int32_t> blocks_;
  std::vector<uint64_t> words_;
};

// The mask of f(batch, head, query position, key position) -> bool.
template <class F>
BlockMask block_mask(const F& f, const MaskSizes& sizes, Context& context) {
  auto as_score = [&f](float, int batch, int head, int32_t i, int32_t j) { return f(batch, head, i, j) ? 1.0f : 0.0f; };
  return BlockMask(make_hook(as_score), sizes, context);
}

}  // namespace attend
