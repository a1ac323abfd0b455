#pragma once
// Numbers of a row of keys by their distance j - i, clipped to the rows of a table: added to rows of keys, and sums over
// keys.
#include <algorithm>
#include <cstdint>

#include "exact/rows.h"

namespace attend::exact {

// Rows 0..rows-1 of a table stand for the distances -zero..rows-1-zero; what lies beyond takes the first or last.
struct DistanceRows {
  int64_t rows, zero;

  int64_t of(int64_t distance) const { return std::clamp<int64_t>(distance + zero, 0, rows - 1); }
};

// The table rows [first, last] that keys [0, n) meet, from the query at `position`. n > 0.
struct TableReach {
  int64_t first, last;

  int64_t count() const { return last - first + 1; }
};
inline TableReach reach_of(const DistanceRows& table, int64_t position, int64_t n) {
  return {table.of(-position), table.of(n - 1 - position)};
}

// add: s[j] += x[row of j]; otherwise s[j] = x[row of j]. x[0] is the number of table row `base`.
template <bool kAdd>
struct SpreadDistances {
  const DistanceRows& table;
  int64_t position, n, base;
  const float* x;
  float* s;

  [[gnu::always_inline]] inline void run() const {
    const int64_t left = std::clamp<int64_t>(position - table.zero, 0, n),
                  right = std::clamp<int64_t>(position - table.zero + table.rows, left, n);
    auto fill = [this](int64_t begin, int64_t end, float value) {
#pragma omp simd
      for (int64_t j = begin; j < end; ++j) s[j] = kAdd ? s[j] + value : value;
    };
    if (left > 0) fill(0, left, x[table.of(-position) - base]);
    const int64_t shift = table.zero - position - base;
#pragma omp simd
    for (int64_t j = left; j < right; ++j) s[j] = kAdd ? s[j] + x[j + shift] : x[j + shift];
    if (right < n) fill(right, n, x[table.of(n - 1 - position) - base]);
  }
};

// x[row of j] += s[j].
struct SumDistances {
  const DistanceRows& table;
  int64_t position, n, base;
  const float* s;
  float* x;

  [[gnu::always_inline]] inline void run() const {
    const int64_t left = std::clamp<int64_t>(position - table.zero, 0, n),
                  right = std::clamp<int64_t>(position - table.zero + table.rows, left, n);
    if (left > 0) x[table.of(-position) - base] += sum(0, left);
    const int64_t shift = table.zero - position - base;
#pragma omp simd
    for (int64_t j = left; j < right; ++j) x[j + shift] += s[j];
    if (right < n) x[table.of(n - 1 - position) - base] += sum(right, n);
  }

 private:
  [[gnu::always_inline]] inline float sum(int64_t begin, int64_t end) const {
    float lanes[16] = {};
    int64_t j = begin;
    for (; j + 16 <= end; j += 16)
#pragma omp simd
      for (int64_t l = 0; l < 16; ++l) lanes[l] += s[j + l];
    for (; j < end; ++j) lanes[0] += s[j];
    float total = 0;
    for (const float lane : lanes) total += lane;
    return total;
  }
};

// Writes sums over heads, [Hq, ..] dense, into a gradient whose first axis is Hq or 1, and that is otherwise dense
// along its last axis.
template <class T>
void store_by_head(const View& gradient, const std::vector<T>& sums, int64_t heads) {
  if (!gradient.data || gradient.count() == 0) return;
  const int64_t width = gradient.shape[gradient.rank - 1], middle = gradient.rank == 3 ? gradient.shape[1] : 1,
                shared = gradient.shape[0] == 1 ? heads : 1;
  for (int64_t h = 0; h < gradient.shape[0]; ++h)
    for (int64_t m = 0; m < middle; ++m)
      for (int64_t c = 0; c < width; ++c) {
        double sum = 0;
        for (int64_t of = 0; of < shared; ++of)
          sum += static_cast<double>(sums[static_cast<size_t>(((h + of) * middle + m) * width + c)]);
        (gradient.rank == 3 ? gradient.at<float>({h, m}) : gradient.at<float>({h}))[c] = static_cast<float>(sum);
      }
}

}  // namespace attend::exact
