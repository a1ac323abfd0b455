#pragma once
// The chosen keys of one kv head as a view that kernels take: the stored runs cut to the chosen slots, or, where these
// are short and kernels don't read rows that are scattered, copies of them side by side. Slots are numbered anew from 0;
// so are positions, unless they are kept.
#include <cstddef>
#include <limits>
#include <span>
#include <vector>

#include "attend/sparse/selector.h"
#include "attend/tensor/buffer.h"
#include "attend/tensor/isa.h"
#include "attend/tensor/key_view.h"

namespace attend {

class SelectedKeys {
 public:
  SelectedKeys();

  // Throws Error(kMemory). `keys` must outlive the view. `keep_positions`: chosen keys keep those that they have, which
  // takes kernels longer than keys without gaps. `rows`: the queries that read them in f32, or kManyRows.
  void cut(const KeyView& keys, const Selection& selection, int64_t d, int64_t dv, bool keep_positions = false,
           int64_t rows = kManyRows);
  static constexpr int64_t kManyRows = std::numeric_limits<int64_t>::max();

  // Valid until the next cut().
  const KeyView& view() const { return view_; }

 private:
  // Memory that is copied in one go.
  struct Piece {
    const std::byte* from;
    std::byte* to;
    int64_t bytes;
  };
  static void copy(std::span<const Piece> pieces);
  void append_rows(const RowRun& rows, int64_t count, int64_t bytes, std::byte* to);
  bool uniform() const;
  void gather(int64_t count, int64_t d, int64_t dv);

  std::vector<KeyRun> runs_;
  std::vector<int32_t> positions_;
  std::vector<Piece> pieces_;  // to gather
  Buffer rows_;
  Isa isa_;  // that coded rows are read with: they read the same with any
  KeyView view_;
};

}  // namespace attend
