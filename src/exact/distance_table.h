#pragma once
// Hooks of a number for each head and distance j - i, clipped to [-clip, clip]: added to scores or multiplied with
// weights.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "exact/tile_hook.h"

namespace attend::exact {

// value: [heads, 2 clip + 1].
template <class Combine>
struct DistanceHook {
  const std::vector<float>& value;
  int32_t clip;
  Combine combine;  // (score or weight, number) -> float

  [[gnu::always_inline]] inline void tile(Tile& t) const {
    const float* middle = value.data() + t.head * (2 * static_cast<int64_t>(clip) + 1) + clip;
    const int32_t* j = t.k_position;
    const bool dense = j[t.cols - 1] - j[0] == t.cols - 1;
    for (int r = 0; r < t.rows; ++r) {
      float* s = t.s + r * t.stride;
      const int32_t i = t.q_position[r];
      if (dense) {  // before the table, along it, beyond it
        const int left = clamped(int64_t{i} - clip - j[0], t.cols),
                  right = clamped(int64_t{i} + clip + 1 - j[0], t.cols);
        const float *along = middle + (j[0] - i), first = middle[-clip], last = middle[clip];
#pragma omp simd
        for (int c = 0; c < left; ++c) s[c] = combine(s[c], first);
#pragma omp simd
        for (int c = left; c < right; ++c) s[c] = combine(s[c], along[c]);
#pragma omp simd
        for (int c = right; c < t.cols; ++c) s[c] = combine(s[c], last);
      } else {
        for (int c = 0; c < t.cols; ++c) s[c] = combine(s[c], middle[std::clamp(j[c] - i, -clip, clip)]);
      }
    }
  }

  [[gnu::always_inline]] static inline int clamped(int64_t column, int cols) {
    return static_cast<int>(std::min<int64_t>(std::max<int64_t>(column, 0), cols));
  }
};

struct AddNumber {
  [[gnu::always_inline]] inline float operator()(float s, float x) const { return s + x; }
};
struct MultiplyNumber {
  [[gnu::always_inline]] inline float operator()(float s, float x) const { return s * x; }
};

}  // namespace attend::exact
