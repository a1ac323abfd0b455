#pragma once
// Parts of MagicPIG's index: random directions, likelihoods of sampling, loops over keys.
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "attend/simd/dense.h"
#include "attend/simd/hook.h"
#include "attend/sparse/selector.h"

namespace attend::lsh {

struct LshOptions {
  int64_t bits, tables, sinks, recent;  // bits: K, tables: L
  uint64_t seed;
};

// Random directions, bits x tables of them, in panels as DenseKernels takes them: those of the first bit of every
// table come first.
class Directions {
 public:
  Directions(const SelectorShape& shape, const LshOptions& o)
      : kernels_(dense_kernels(shape.isa)),
        d_(shape.d),
        bits_(o.bits),
        tables_(o.tables),
        panels_((o.bits * o.tables + kPanelKeys - 1) / kPanelKeys),
        values_(static_cast<size_t>(panels_ * kPanelKeys * shape.d)) {
    std::mt19937_64 random(o.seed);
    std::normal_distribution<float> normal;
    for (float& x : values_) x = normal(random);
  }

  // Which sides of the directions the rows of x [rows, d] lie on: codes [rows, tables].
  void codes(const float* x, int64_t rows, uint16_t* to) const {
    std::fill_n(to, rows * tables_, uint16_t{0});
    float side[kRows * kPanelKeys];
    for (int64_t first = 0; first < rows; first += kRows) {
      const int64_t count = std::min(kRows, rows - first);
      for (int64_t panel = 0; panel < panels_; ++panel) {
        kernels_.dots(x + first * d_, d_, count, d_, values_.data() + panel * kPanelKeys * d_, side, kPanelKeys);
        for (int64_t r = 0; r < count; ++r) add_bits(side + r * kPanelKeys, panel, to + (first + r) * tables_);
      }
    }
  }
  int64_t bytes() const { return static_cast<int64_t>(values_.size() * sizeof(float)); }

 private:
  static constexpr int64_t kRows = 32;  // at once

  // One bit of the codes of tables side by side, then the next one's.
  void add_bits(const float* side, int64_t panel, uint16_t* code) const {
    const int64_t begin = panel * kPanelKeys, end = std::min(begin + kPanelKeys, bits_ * tables_);
    for (int64_t at = begin; at < end;) {
      const int64_t bit = at / tables_, last = std::min(end, (bit + 1) * tables_);
      uint16_t* to = code + at - bit * tables_;
      const float* from = side + at - begin;
      const int one = 1 << bit;
#pragma omp simd
      for (int64_t i = 0; i < last - at; ++i) to[i] = static_cast<uint16_t>(to[i] | (from[i] > 0 ? one : 0));
      at = last;
    }
  }

  const DenseKernels& kernels_;
  int64_t d_, bits_, tables_, panels_;
  std::vector<float> values_;
};

// -ln of how likely a key at an angle of some cosine is sampled, by linear interpolation.
class Likelihood {
 public:
  explicit Likelihood(const LshOptions& o) : values_(kSteps + 2) {
    for (size_t i = 0; i < values_.size(); ++i)
      values_[i] = static_cast<float>(-log_likelihood(2.0 * static_cast<double>(i) / kSteps - 1, o));
  }
  float log_weight(float cosine) const {
    const float at = (std::clamp(cosine, -1.0f, 1.0f) + 1) * (kSteps / 2);
    const size_t i = static_cast<size_t>(at);
    const float part = at - static_cast<float>(i);
    return values_[i] * (1 - part) + values_[i + 1] * part;
  }

 private:
  static constexpr int kSteps = 1 << 14;

  // ln of the likelihood of at least two common codes.
  static double log_likelihood(double cosine, const LshOptions& o) {
    const double side = 1 - std::acos(std::clamp(cosine, -1.0, 1.0)) / M_PI;
    const double one = std::pow(side, static_cast<double>(o.bits)), l = static_cast<double>(o.tables);
    const double fewer = std::pow(1 - one, l) + l * one * std::pow(1 - one, l - 1);
    // For small likelihoods the difference from 1 cancels: l (l - 1) / 2 pairs of tables, each with one^2.
    const double likely = l * one < 1e-4 ? l * (l - 1) / 2 * one * one : 1 - fewer;
    return std::log(std::max(likely, 1e-30));
  }

  std::vector<float> values_;
};

struct Loops {
  // squares[j] = |key - mean|^2 of the 64 keys of a panel.
  [[gnu::always_inline]] static inline void squares_loop(const float* panel, const float* mean, int64_t d,
                                                         float* squares) {
    float sum[kPanelKeys] = {};
    for (int64_t c = 0; c < d; ++c) {
#pragma omp simd
      for (int j = 0; j < kPanelKeys; ++j) {
        const float x = panel[c * kPanelKeys + j] - mean[c];
        sum[j] += x * x;
      }
    }
    std::copy_n(sum, kPanelKeys, squares);
  }
  // met[j] = whether it was at least 2; all[j] = whether that is so of any query yet.
  [[gnu::always_inline]] static inline void met_loop(uint8_t* met, int64_t n, uint8_t* all) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      met[j] = met[j] >= 2 ? 1 : 0;
      all[j] = static_cast<uint8_t>(all[j] | met[j]);
    }
  }
  // cosines[j] = (dots[j] - offset) / sqrt(square * squares[j]) of 64 keys, 0 where that is by 0.
  [[gnu::always_inline]] static inline void cosines_loop(const float* dots, float offset, float square,
                                                         const float* squares, float* cosines) {
#pragma omp simd
    for (int j = 0; j < kPanelKeys; ++j) {
      const float norm = std::sqrt(square * squares[j]), cosine = (dots[j] - offset) / norm;
      cosines[j] = norm > 0 ? cosine : 0.0f;
    }
  }
  ATTEND_TARGET_AVX2 static void cosines_avx2(const float* dots, float offset, float square, const float* squares,
                                              float* cosines) {
    cosines_loop(dots, offset, square, squares, cosines);
  }
  ATTEND_TARGET_AVX512 static void cosines_avx512(const float* dots, float offset, float square, const float* squares,
                                                  float* cosines) {
    cosines_loop(dots, offset, square, squares, cosines);
  }
  ATTEND_TARGET_AVX2 static void squares_avx2(const float* panel, const float* mean, int64_t d, float* squares) {
    squares_loop(panel, mean, d, squares);
  }
  ATTEND_TARGET_AVX512 static void squares_avx512(const float* panel, const float* mean, int64_t d, float* squares) {
    squares_loop(panel, mean, d, squares);
  }
  ATTEND_TARGET_AVX2 static void met_avx2(uint8_t* met, int64_t n, uint8_t* all) {
    met_loop(met, n, all);
  }
  ATTEND_TARGET_AVX512 static void met_avx512(uint8_t* met, int64_t n, uint8_t* all) {
    met_loop(met, n, all);
  }

  explicit Loops(Isa isa)
      : squares(isa == Isa::kAvx2 ? squares_avx2 : squares_avx512),
        cosines(isa == Isa::kAvx2 ? cosines_avx2 : cosines_avx512),
        met(isa == Isa::kAvx2 ? met_avx2 : met_avx512) {}
  void (*squares)(const float*, const float*, int64_t, float*);
  void (*cosines)(const float*, float, float, const float*, float*);
  void (*met)(uint8_t*, int64_t, uint8_t*);
};

}  // namespace attend::lsh
