// What is taken off keys before they are rounded, and given back to scores. See math-inl.h on how it is included.
#include <algorithm>
#include <array>

namespace attend {
namespace HWY_NAMESPACE {

inline constexpr int kWeightBlock = 64;  // positions whose weights share a scale, and whose keys a mean
inline constexpr int kWeightBlocks = kStripCols / kWeightBlock;

// The blocks of 64 positions of a split, as columns.
class PositionBlocks {
 public:
  explicit PositionBlocks(const SplitJob& job) {
    begin_.fill(job.cols);
    const int64_t split = (job.k_position ? job.k_position[0] : job.first_position) / kSplitPositions;
    for (int b = 0, c = 0; b < kWeightBlocks; ++b) {
      const int64_t first = split * kSplitPositions + b * kWeightBlock;
      while (c < job.cols && (job.k_position ? job.k_position[c] : job.first_position + c) < first) ++c;
      begin_[static_cast<size_t>(b)] = c;
    }
  }

  int begin(int b) const { return begin_[static_cast<size_t>(b)]; }
  int end(int b) const { return begin_[static_cast<size_t>(b) + 1]; }
  bool complete(int b) const { return end(b) - begin(b) == kWeightBlock; }

 private:
  std::array<int, kWeightBlocks + 1> begin_;
};

// A mean m is taken off the keys of a block before they are rounded, and q . m joins their scores: exact for any m, and
// what all keys share then costs no precision (SageAttention, Zhang et al. 2024, arXiv:2410.02367, section 4.2, takes
// off the mean of all keys, which softmax does not notice). m is the mean of the block before, which a row near the
// diagonal sees all of; in the first block of a split, which knows no other, its own. Only rows that see all 64 keys of
// m have it so: other rows, and those whose scores a bias or a hook may hide, take keys as they are. So no key that a
// row does not see changes a bit of it.
class Smoothing {
 public:
  Smoothing(const SplitJob& job, const PositionBlocks& blocks)
      : job_(job),
        keys_(job),
        blocks_(blocks),
        active_(job.compute == Compute::kInt8Qk && !job.bias && !job.hook),
        padded_(padded_dv(job.d)) {
    float* at = reinterpret_cast<float*>(job.scratch + split_layout::layout(job.d, job.dv).means);
    means_ = at, panel_ = at + kWeightBlocks * padded_;
    if (active_) std::fill_n(panel_, job.d * kPanelCols, 0.0f);
    for (int b = 0; b < kWeightBlocks; ++b)
      if (blocks.complete(b)) complete_ |= 1u << b;
  }

  bool active() const { return active_; }

  void take_block(int first, int count) {
    if (!active_) return;
    unsigned some = 0;
    for (int r = 0; r < count; ++r) {
      const unsigned seen = blocks_seen(first + r);
      some |= smooth_[r] = (seen << 1 | (seen & 1)) & ((1u << kWeightBlocks) - 1);
    }
    for (int b = 0; b < kWeightBlocks; ++b)
      if (some >> b & 1) find_mean(origin(b));
    if (some == 0) return;
    const F32 d;
    for (int r = 0; r < count; r += kGroupRows)
      for_rows(std::min(kGroupRows, count - r), [&](auto n) {
        score_panel<n, kPanelCols / kLanes>(job_.q + static_cast<int64_t>(first + r) * job_.d, job_.d, panel_,
                                            kPanelCols, shifts_ + r * kPanelCols, kPanelCols);
      });
    const Vec scale = hn::Set(d, job_.score_scale);
    for (int i = 0; i < count * kPanelCols; i += static_cast<int>(kLanes))
      hn::StoreU(hn::Mul(scale, hn::LoadU(d, shifts_ + i)), d, shifts_ + i);
  }

  // Whether this row of the block has the keys of block `b` smoothed.
  bool is_smooth(int row, int b) const { return active_ && (smooth_[row] >> b & 1) != 0; }
  // Whether rows may have the keys of block `b` smoothed.
  bool may_smooth(int b) const { return (complete_ >> origin(b) & 1) != 0; }
  // The block whose columns include those of [begin, end) that exist if all of these rows have it smoothed, else -1.
  int block_of(int row, int rows, int begin, int end) const {
    if (!active_) return -1;
    for (int b = 0; b < kWeightBlocks; ++b) {
      if (blocks_.begin(b) > begin || blocks_.end(b) < std::min(end, job_.cols)) continue;
      for (int r = row; r < row + rows; ++r)
        if (!is_smooth(r, b)) return -1;
      return b;
    }
    return -1;
  }
  // What is taken off the keys of block `b`, where that may be smoothed; zeros behind d.
  const float* mean(int b) {
    find_mean(origin(b));
    return means_ + origin(b) * padded_;
  }
  // scale q . mean(b); rows are kShiftStride apart.
  const float* shift(int row, int b) const { return shifts_ + row * kPanelCols + origin(b); }
  static constexpr int kShiftStride = 16;

 private:
  static constexpr int kPanelCols = kShiftStride;

  // The block whose mean is taken off the keys of block `b`.
  static int origin(int b) { return std::max(b - 1, 0); }

  // Those that the row sees all of.
  unsigned blocks_seen(int row) const {
    const ColumnRanges& v = job_.visible[row % job_.tokens];
    const uint64_t* mask =
        job_.mask ? job_.mask + row / job_.tokens * job_.mask_head_stride + row % job_.tokens * (kStripCols / 64)
                  : nullptr;
    const bool whole = (v.a0 <= 0 && v.a1 >= job_.cols) || (v.b0 <= 0 && v.b1 >= job_.cols);
    if (whole && !mask) return complete_;
    unsigned seen = 0;
    for (int b = 0; b < kWeightBlocks; ++b) {
      const int begin = blocks_.begin(b), end = blocks_.end(b);
      if (!blocks_.complete(b)) continue;
      const int in_a = std::min(end, v.a1) - std::max(begin, v.a0), in_b = std::min(end, v.b1) - std::max(begin, v.b0);
      if (std::max(in_a, 0) + std::max(in_b, 0) < kWeightBlock) continue;
      bool hidden = false;
      for (int c = begin; mask && c < end; ++c) hidden |= (mask[c / 64] >> c % 64 & 1) == 0;
      if (!hidden) seen |= 1u << b;
    }
    return seen;
  }

  void find_mean(int b) {
    if (known_ >> b & 1) return;
    known_ |= 1u << b;
    const F32 d;
    const Vec part = hn::Set(d, 1.0f / kWeightBlock);
    float* mean = means_ + b * padded_;
    std::fill_n(mean, padded_, 0.0f);
    keys_.each_key_run(blocks_.begin(b), blocks_.end(b), [&](const auto k, int64_t stride, int, int count) {
      alignas(64) float wide[16 * 512];
      for (int i = 0; i < count; i += 16) {
        const int n = std::min(16, count - i);
        pack_values(k + i * stride, stride, n, job_.d, padded_, wide);
        for (int64_t c = 0; c < padded_; c += kLanes) {
          Vec sum = hn::LoadU(d, mean + c);
          for (int r = 0; r < n; ++r) sum = hn::MulAdd(part, hn::LoadU(d, wide + r * padded_ + c), sum);
          hn::StoreU(sum, d, mean + c);
        }
      }
    });
    for (int64_t c = 0; c < job_.d; ++c) panel_[c * kPanelCols + b] = mean[c];
  }

  const SplitJob& job_;
  JobKeys keys_;
  const PositionBlocks& blocks_;
  bool active_;
  int64_t padded_;
  float *means_, *panel_;  // a mean a row; a mean a column
  unsigned complete_ = 0, known_ = 0, smooth_[kMostBlockRows] = {};
  alignas(64) float shifts_[kMostBlockRows * kPanelCols];
};

}  // namespace HWY_NAMESPACE
}  // namespace attend
