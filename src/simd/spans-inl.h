// Which columns of a strip of scores some row of a group sees. See math-inl.h on how it is included.
#include <algorithm>
#include <array>
#include <utility>

#include "attend/simd/split.h"
#include "simd/split_layout.h"

namespace attend {
namespace HWY_NAMESPACE {

using split_layout::kStripCols, split_layout::kStripStride;

inline constexpr int kMaskCols = 64;  // columns of a word of a mask
inline constexpr int kMaskWords = kStripCols / kMaskCols;

struct Span {
  int begin, end;
  bool empty() const { return begin >= end; }
};

// Ascending, disjoint, and still so when rounded outwards to 16 columns.
class Spans {
 public:
  const Span* begin() const { return spans_.data(); }
  const Span* end() const { return spans_.data() + count_; }
  bool empty() const { return count_ == 0; }
  bool touches(int first, int last) const {
    return std::any_of(begin(), end(), [&](const Span& s) { return s.begin < last && first < s.end; });
  }
  // From the first to the last column of [first, last) in them.
  Span within(int first, int last) const {
    Span hull{last, first};
    for (const Span& s : *this) {
      hull.begin = std::min(hull.begin, std::max(s.begin, first));
      hull.end = std::max(hull.end, std::min(s.end, last));
    }
    return hull;
  }
  // What lies in [first, last).
  Spans part(int first, int last) const {
    Spans part;
    for (const Span& s : *this)
      if (const Span in{std::max(s.begin, first), std::min(s.end, last)}; !in.empty()) part.append(in);
    return part;
  }
  void append(Span s) {
    if (count_ > 0 && spans_[count_ - 1].end == s.begin) {
      spans_[count_ - 1].end = s.end;
    } else {
      spans_[count_++] = s;
    }
  }

 private:
  std::array<Span, kMaskWords + 2> spans_;
  size_t count_ = 0;
};

// Gathers rows: the hulls of their first and second ranges, and the words of their masks.
class Seen {
 public:
  void add(const ColumnRanges& r, const uint64_t* mask) {
    if (r.a0 < r.a1) widen(a_, r.a0, r.a1);
    if (r.b0 < r.b1) widen(b_, r.b0, r.b1);
    if (!mask) return;
    masked_ = true;
    for (int w = 0; w < kMaskWords; ++w) words_[w] |= mask[w];
  }
  void add(const Seen& other) {
    if (!other.a_.empty()) widen(a_, other.a_.begin, other.a_.end);
    if (!other.b_.empty()) widen(b_, other.b_.begin, other.b_.end);
    masked_ |= other.masked_;
    for (int w = 0; w < kMaskWords; ++w) words_[w] |= other.words_[w];
  }
  Spans spans() const {
    Span a = a_, b = b_;
    if (a.empty()) std::swap(a, b);
    if (!a.empty() && !b.empty() && b.begin / 16 * 16 < (a.end + 15) / 16 * 16) {
      a = {std::min(a.begin, b.begin), std::max(a.end, b.end)};
      b = {0, 0};
    }
    Spans spans;
    for (const Span& s : {a, b}) {
      if (s.empty()) continue;
      if (!masked_) spans.append(s);
      for (int w = s.begin / kMaskCols; masked_ && w * kMaskCols < s.end; ++w)
        if (words_[w] != 0) spans.append({std::max(s.begin, w * kMaskCols), std::min(s.end, (w + 1) * kMaskCols)});
    }
    return spans;
  }

 private:
  static void widen(Span& s, int begin, int end) {
    s.begin = std::min(s.begin, begin);
    s.end = std::max(s.end, end);
  }
  Span a_{kStripCols, 0}, b_{kStripCols, 0};
  uint64_t words_[kMaskWords] = {};
  bool masked_ = false;
};

}  // namespace HWY_NAMESPACE
}  // namespace attend
