#pragma once
// Sums of gradients that come in parts.
#include <algorithm>

#include "attend/tensor/view.h"

namespace attend::exact {

// f(row, width) of every row of four axes, in order.
template <class F>
void each_row(const View& x, F f) {
  for (int64_t b = 0; b < x.shape[0]; ++b)
    for (int64_t h = 0; h < x.shape[1]; ++h)
      for (int64_t t = 0; t < x.shape[2]; ++t) f(x.at<float>({b, h, t}), x.shape[3]);
}

// An absent view stays so.
inline void clear_rows(const View& x) {
  if (x.data) each_row(x, [](float* row, int64_t width) { std::fill_n(row, width, 0.0f); });
}

// to += from, which is dense and of its shape; nothing if absent.
inline void add_rows(const View& from, const View& to) {
  if (!to.data) return;
  const float* next = from.as<float>();
  each_row(to, [&](float* row, int64_t width) {
    for (int64_t c = 0; c < width; ++c) row[c] += *next++;
  });
}

}  // namespace attend::exact
