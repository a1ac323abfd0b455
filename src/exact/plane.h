#pragma once
// The plane that local linear attention puts through the values around one query: sums over its keys, and conjugate
// gradients on the equations of its slope.
#include <vector>

#include "exact/lane_sum.h"
#include "exact/rows.h"

namespace attend::exact {

inline double dot(const float* x, const float* y, int64_t n) {
  double sum = 0;
  for (int64_t c = 0; c < n; ++c) sum += static_cast<double>(x[c]) * static_cast<double>(y[c]);
  return sum;
}

// One query, D elements, and the weights of n keys, which sum to 1.
struct PlaneRow {
  const PackedHead& head;
  const float *q, *w;
  int64_t n;
};

// Of one thread. With z[j] = k[j] - q:
class Plane {
 public:
  Plane(const DenseKernels& kernels, double ridge, int64_t d, int64_t keys)
      : kernels_(kernels), ridge_(ridge), d_(d), part_(kPanelKeys), gain_(static_cast<size_t>(padded_keys(keys))) {
    for (std::vector<float>* x : {&residual_, &step_, &product_}) x->resize(static_cast<size_t>(d));
  }

  // to[j] = dot(y, z[j])
  void project(const PlaneRow& row, const float* y, float* to) {
    const float base = static_cast<float>(dot(y, row.q, d_));
    for (int64_t first = 0; first < row.n; first += kPanelKeys) {
      kernels_.dots(y, 0, 1, d_, row.head.panel(first / kPanelKeys), part_.data(), 0);
      const int64_t n = std::min<int64_t>(kPanelKeys, row.n - first);
      for (int64_t j = 0; j < n; ++j) to[first + j] = part_[static_cast<size_t>(j)] - base;
    }
  }

  // to = sum_j gain[j] z[j]
  void gather(const PlaneRow& row, const float* gain, float* to) {
    const float sum = lane_sum(gain, row.n);
    std::fill_n(to, d_, 0.0f);
    kernels_.add_rows(gain, 0, 1, row.n, row.head.keys(), d_, d_, to, 0);
    for (int64_t c = 0; c < d_; ++c) to[c] -= sum * row.q[c];
  }

  // (M + ridge I) x = goal, M = sum_j w[j] z[j] z[j]', to a relative residual of 1e-6 or for 2 D + 16 steps; 0 for a
  // goal that is no number.
  void solve(const PlaneRow& row, const float* goal, float* x) {
    std::fill_n(x, d_, 0.0f);
    std::copy_n(goal, d_, residual_.data());
    std::copy_n(goal, d_, step_.data());
    double norm = dot(goal, goal, d_);
    const double least = norm * kTolerance * kTolerance;
    for (int64_t left = 2 * d_ + 16; left > 0 && norm > least; --left) norm = advance(row, norm, x);
  }

 private:
  static constexpr double kTolerance = 1e-6;

  // One step; gives the residual's square.
  double advance(const PlaneRow& row, double before, float* x) {
    project(row, step_.data(), gain_.data());
    for (int64_t j = 0; j < row.n; ++j) {
      float& gain = gain_[static_cast<size_t>(j)];
      gain = row.w[j] == 0 ? 0.0f : row.w[j] * gain;
    }
    gather(row, gain_.data(), product_.data());
    const float ridge = static_cast<float>(ridge_);
    float *residual = residual_.data(), *step = step_.data(), *product = product_.data();
    for (int64_t c = 0; c < d_; ++c) product[c] += ridge * step[c];
    const float length = static_cast<float>(before / dot(step, product, d_));
    for (int64_t c = 0; c < d_; ++c) {
      x[c] += length * step[c];
      residual[c] -= length * product[c];
    }
    const double norm = dot(residual, residual, d_);
    const float keep = static_cast<float>(norm / before);
    for (int64_t c = 0; c < d_; ++c) step[c] = residual[c] + keep * step[c];
    return norm;
  }

  const DenseKernels& kernels_;
  double ridge_;
  int64_t d_;
  std::vector<float> part_, gain_, residual_, step_, product_;
};

}  // namespace attend::exact
