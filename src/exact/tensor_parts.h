#pragma once
// What both passes of tensor attention share: checks, rows, and sums of monomials.
#include <algorithm>
#include <cmath>
#include <vector>

#include "attend/exact/tensor.h"
#include "attend/simd/dense.h"
#include "exact/problem.h"

namespace attend::exact {

// Of the first keys and values; the second are of their shapes. Throws Error(kArgument).
Problem check_tensor(const TensorIn& in, const TensorOptions& options);

inline double tensor_scale(const TensorOptions& options, int64_t d) {
  return options.scale == 0 ? 1 / std::sqrt(static_cast<double>(d)) : options.scale;
}

// The first `count` keys.
inline View first_keys(View v, int64_t count) {
  v.shape[2] = count;
  return v;
}

// Rows of one head as f32.
inline void widen_rows(const DenseKernels& kernels, const View& v, int64_t b, int64_t h, int64_t first, int64_t rows,
                       float* out) {
  const char* from = v.as<char>() + (b * v.stride[0] + h * v.stride[1] + first * v.stride[2]) * size_of(v.type);
  kernels.widen(v.type, from, v.stride[2], rows, v.shape[3], out, v.shape[3]);
}

// Keys that query i of batch entry b sees.
inline int64_t keys_seen(const Problem& p, int64_t b, int64_t i, int64_t keys) {
  return std::clamp<int64_t>(p.options.causal ? p.position(b, i) + 1 : keys, 0, keys);
}

// Monomials in graded order: each is an earlier one times a variable.
struct Monomials {
  std::vector<int32_t> parent, variable;
  std::vector<double> coefficient;  // of exp: scale^m / (product of the factorials of the exponents)

  Monomials(int64_t d, int64_t degree, double scale) {
    struct Last {
      int32_t variable, power;
    };
    std::vector<Last> last = {{0, 0}};
    parent = {0}, variable = {0}, coefficient = {1};
    size_t begin = 0, end = 1;
    for (int64_t m = 1; m <= degree; ++m) {
      for (size_t from = begin; from < end; ++from)
        for (int32_t x = last[from].variable; x < d; ++x) {
          const int32_t power = x == last[from].variable ? last[from].power + 1 : 1;
          parent.push_back(static_cast<int32_t>(from));
          variable.push_back(x);
          coefficient.push_back(coefficient[from] * scale / power);
          last.push_back({x, power});
        }
      begin = end, end = parent.size();
    }
  }
  size_t size() const { return parent.size(); }
  void evaluate(const float* x, double* out) const {
    out[0] = 1;
    for (size_t f = 1; f < size(); ++f)
      out[f] = out[static_cast<size_t>(parent[f])] * static_cast<double>(x[variable[f]]);
  }
  // Gradients d of the monomials `at` of x, which it changes, join those of x.
  void pull(const float* x, const double* at, double* d, double* d_x) const {
    for (size_t f = size(); f-- > 1;) {
      const size_t from = static_cast<size_t>(parent[f]);
      d_x[variable[f]] += d[f] * at[from];
      d[from] += d[f] * static_cast<double>(x[variable[f]]);
    }
  }
};

// What is known of the keys so far, for one head: sums of monomial times value, and of monomials.
struct Moments {
  int64_t features, dv;
  std::vector<double> monomials, sums[2], counts[2];
  std::vector<float> key, value;
  std::vector<double> total;

  Moments(const Monomials& m, int64_t d, int64_t width)
      : features(static_cast<int64_t>(m.size())), dv(width), monomials(m.size()) {
    for (int side = 0; side < 2; ++side) {
      sums[side].resize(m.size() * static_cast<size_t>(dv));
      counts[side].resize(m.size());
    }
    key.resize(static_cast<size_t>(d));
    value.resize(static_cast<size_t>(dv));
    total.resize(static_cast<size_t>(dv));
  }
  void clear() {
    for (int side = 0; side < 2; ++side) {
      std::fill(sums[side].begin(), sums[side].end(), 0.0);
      std::fill(counts[side].begin(), counts[side].end(), 0.0);
    }
  }
  // Adds the key and value at hand, or takes them off with a sign of -1.
  void add(int side, const Monomials& m, double sign = 1) {
    m.evaluate(key.data(), monomials.data());
    double *sum = sums[side].data(), *count = counts[side].data();
    const float* v = value.data();
    for (int64_t f = 0; f < features; ++f) {
      const double x = sign * monomials[static_cast<size_t>(f)];
      count[f] += x;
      for (int64_t c = 0; c < dv; ++c) sum[f * dv + c] += x * static_cast<double>(v[c]);
    }
  }
  void read(const float* q, const Monomials& m, float* out) {
    m.evaluate(q, monomials.data());
    std::fill(total.begin(), total.end(), 0.0);
    double count = 0;
    const double *first = sums[0].data(), *second = sums[1].data();
    double* to = total.data();
    for (int64_t f = 0; f < features; ++f) {
      const size_t at = static_cast<size_t>(f);
      const double x = monomials[at] * m.coefficient[at];
      count += x * counts[0][at] * counts[1][at];
      for (int64_t c = 0; c < dv; ++c) to[c] += x * first[f * dv + c] * second[f * dv + c];
    }
    for (int64_t c = 0; c < dv; ++c) out[c] = static_cast<float>(to[c] / count);
  }
};

}  // namespace attend::exact
