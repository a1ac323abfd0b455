#pragma once
// Bounds of 32 pages of keys as bytes, and the scores that they allow, in integers: the same on every instruction set.
#include <cstddef>
#include <cstdint>
#include <vector>

#include "attend/tensor/isa.h"

namespace attend {

inline constexpr int64_t kCodedPages = 32;  // side by side: a group

class PageCodes {
 public:
  PageCodes(int64_t d, Isa isa);

  int64_t bytes() const { return bytes_; }  // of a group, a multiple of 64

  // The codes of a group from its bounds, each [d, 32]: least ones round down, largest ones up, to 255 steps between
  // the group's smallest and largest number in a channel.
  void write(const float* least, const float* largest, std::byte* to) const;

  // Scratch of one thread.
  struct Scratch {
    std::vector<float> scaled, unit;     // [group, d], [group]
    std::vector<int32_t> shift, factor;  // [group, d], [d]
    std::vector<uint32_t> words;         // [2, d / 2]
  };

  // scores[g * stride + 32 i + p] = sum over channels of the larger of q[g] * least and q[g] * largest, of page p of
  // group i. Products of q with a channel's step are rounded to 1 / 32639 of the largest that a query could have: the
  // sum moves by less than d / 256 of a step of the widest channel times the largest |q[g]| (d up to 258; then by more,
  // for sums have 32 bits). NaN if q or the bounds are
  // not finite.
  // Cost     O(group d) a page; bytes() of memory a group of pages.
  void scores(const std::byte* codes, int64_t groups, const float* q, int64_t group, float* scores, int64_t stride,
              Scratch& scratch) const;

 private:
  int64_t d_, padded_;  // channels, and these in whole pairs
  int64_t bytes_;
  Isa isa_;
};

}  // namespace attend
