#include "attend/exact/block_mask.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>

#include "attend/simd/isa.h"
#include "attend/tensor/error.h"
#include "attend/tensor/parallel.h"

namespace attend {

BlockMask::BlockMask(const MaskSizes& sizes) : sizes_(sizes) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (sizes.batch < 1 || sizes.heads < 1 || sizes.queries < 0 || sizes.keys < 0 || sizes.queries > kMost ||
      sizes.keys > kMost || sizes.batch > kMost || sizes.heads > kMost)
    throw Error(ErrorKind::kArgument, "block_mask", "sizes",
                fmt::format("[{}, {}, {}, {}]", sizes.batch, sizes.heads, sizes.queries, sizes.keys),
                "must be at least [1, 1, 0, 0] and below 2^31");
  const int64_t rows = sizes.batch * sizes.heads * query_blocks(), columns = key_blocks();
  try {
    blocks_.resize(static_cast<size_t>(rows * columns));
  } catch (const std::exception&) {
    throw Error(ErrorKind::kMemory, "block_mask", "blocks", fmt::format("{} x {}", rows, columns), "don't fit memory");
  }
}

BlockMask::BlockMask(const MaskSizes& sizes, const std::function<bool(int64_t, int64_t, int64_t, int64_t)>& sees,
                     int64_t first_query_block)
    : BlockMask(sizes) {
  std::fill(blocks_.begin(), blocks_.end(), kEmpty);
  for (int64_t head = 0; head < sizes.batch * sizes.heads; ++head)
    for (int64_t i = std::max<int64_t>(0, first_query_block); i < query_blocks(); ++i)
      for (int64_t j = 0; j < key_blocks(); ++j)
        if (sees(head / sizes.heads, head % sizes.heads, i, j))
          blocks_[static_cast<size_t>((head * query_blocks() + i) * key_blocks() + j)] = kFull;
}

BlockMask::BlockMask(const Hook& hook, const MaskSizes& sizes, Context& context) : BlockMask(sizes) {
  const int isa = static_cast<int>(active_isa(context));
  const int64_t rows = sizes.batch * sizes.heads * query_blocks(), columns = key_blocks();
  std::vector<std::vector<uint64_t>> words(static_cast<size_t>(rows));
  // A row of blocks is a task; the numbers of partial blocks are made ascending afterwards.
  parallel_for(context.threads, rows, [&](int64_t row, int) {
    if (context.stop.stop_requested()) return;
    std::vector<uint64_t>& partial = words[static_cast<size_t>(row)];
    const int64_t head = row / query_blocks(), query = row % query_blocks() * kBlock;
    const int query_count = static_cast<int>(std::min(kBlock, sizes_.queries - query));
    std::array<int32_t, kBlock> q_position, k_position;
    for (int64_t i = 0; i < kBlock; ++i) q_position[static_cast<size_t>(i)] = static_cast<int32_t>(query + i);
    std::array<float, kBlock * kBlock> tile_values;
    for (int64_t column = 0; column < columns; ++column) {
      const int64_t key = column * kBlock;
      const int key_count = static_cast<int>(std::min(kBlock, sizes_.keys - key));
      for (int64_t j = 0; j < kBlock; ++j) k_position[static_cast<size_t>(j)] = static_cast<int32_t>(key + j);
      Tile tile{tile_values.data(),
                kBlock,
                query_count,
                key_count,
                static_cast<int>(head / sizes_.heads),
                static_cast<int>(head % sizes_.heads),
                q_position.data(),
                k_position.data()};
      hook.run[isa](hook.self, tile);
      std::array<uint64_t, kBlock> bits{};
      bool any = false, all = true;
      for (int r = 0; r < query_count; ++r) {
        uint64_t word = 0;
        for (int c = 0; c < key_count; ++c)
          word |= uint64_t{tile_values[static_cast<size_t>(r * kBlock + c)] != 0} << c;
        bits[static_cast<size_t>(r)] = word;
        any |= word != 0;
        all &= word == ~uint64_t{0} >> (kBlock - key_count);
      }
      int32_t state = all ? kFull : kEmpty;
      if (any && !all) {
        state = static_cast<int32_t>(partial.size() / kBlock);
        partial.insert(partial.end(), bits.begin(), bits.end());
      }
      blocks_[static_cast<size_t>(row * columns + column)] = state;
    }
  });
  context.throw_if_stopped();
  int32_t first = 0;
  for (int64_t row = 0; row < rows; ++row) {
    std::vector<uint64_t>& partial = words[static_cast<size_t>(row)];
    for (int64_t column = 0; column < columns; ++column) {
      int32_t& state = blocks_[static_cast<size_t>(row * columns + column)];
      if (state >= 0) state += first;
    }
    first += static_cast<int32_t>(partial.size() / kBlock);
    words_.insert(words_.end(), partial.begin(), partial.end());
    partial = {};
  }
}

double BlockMask::density() const {
  if (blocks_.empty()) return 0;
  return static_cast<double>(blocks_.size() - static_cast<size_t>(std::count(blocks_.begin(), blocks_.end(), kEmpty))) /
         static_cast<double>(blocks_.size());
}

}  // namespace attend
