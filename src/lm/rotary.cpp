#include "rotary.h"

#include <cmath>

namespace attend {

RotaryAngles::RotaryAngles(const Rotary& rotary) : rotary_(rotary) {
  for (int64_t i = 0; i < pairs(); ++i)
    frequency_.push_back(std::pow(rotary.base, -2.0 * static_cast<double>(i) / static_cast<double>(rotary.dims)));
  for (int64_t b = 0; b < kStep; ++b)
    for (double f : frequency_) {
      cosine_.push_back(std::cos(static_cast<double>(b) * f));
      sine_.push_back(std::sin(static_cast<double>(b) * f));
    }
}

void RotaryAngles::fill(int64_t first, int64_t rows, const RowOps& ops, float* cosine, float* sine) const {
  const int64_t n = pairs();
  std::vector<double> base_cosine(static_cast<size_t>(n)), base_sine(static_cast<size_t>(n));
  int64_t base = -1;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t position = first + r, b = position % kStep;
    if (base != position - b) {
      base = position - b;
      for (size_t i = 0; i < frequency_.size(); ++i) {
        base_cosine[i] = std::cos(static_cast<double>(base) * frequency_[i]);
        base_sine[i] = std::sin(static_cast<double>(base) * frequency_[i]);
      }
    }
    ops.add_angles(base_cosine.data(), base_sine.data(), cosine_.data() + b * n, sine_.data() + b * n, n,
                   cosine + r * n, sine + r * n);
  }
}

}  // namespace attend
