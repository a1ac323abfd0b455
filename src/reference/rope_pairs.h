#pragma once
// Rotary position embeddings as their papers define them: the angle of each pair, and pairs of a head turned by it.
#include <cmath>
#include <numbers>
#include <vector>

#include "attend/exact/rope_options.h"
#include "reference/inputs.h"

namespace attend::reference {

struct Pair {
  double a, b;
};

struct Rope {
  RopeOptions o;
  int64_t dims = 0;
  double length = 0;
  View short_factors = {}, long_factors = {};
  std::vector<double> frequency;  // [dims / 2], radians a token

  Rope(const RopeOptions& options, int64_t d, int64_t text, const View& short_divisors = {},
       const View& long_divisors = {})
      : o(options),
        dims(options.dims == 0 ? d : options.dims),
        length(static_cast<double>(text)),
        short_factors(short_divisors),
        long_factors(long_divisors) {
    for (int64_t i = 0; i < dims / 2; ++i) frequency.push_back(frequency_of(i));
  }

  bool beyond() const { return length > static_cast<double>(o.original); }

  double magnitude() const {
    if (o.magnitude != 0) return o.magnitude;
    if (o.scaling == RopeScaling::kYarn && o.extrapolation != 0) return 0.1 * std::log(o.factor) + 1;
    if (o.scaling == RopeScaling::kLongRope && o.factor > 1)
      return std::sqrt(1 + std::log(o.factor) / std::log(static_cast<double>(o.original)));
    return 1;
  }

  double frequency_of(int64_t i) const {
    const double n = static_cast<double>(dims), original = static_cast<double>(o.original);
    double base = o.base;
    if (o.scaling == RopeScaling::kNtk) base = o.base * std::pow(o.factor, n / (n - 2));
    if (o.scaling == RopeScaling::kDynamicNtk && beyond())
      base = o.base * std::pow(o.factor * length / original - (o.factor - 1), n / (n - 2));
    double theta = 1 / std::pow(base, 2 * static_cast<double>(i) / n);
    const View& factors = o.scaling == RopeScaling::kLongRope && beyond() ? long_factors : short_factors;
    if (factors.data) theta /= element(factors, {i});
    const double wavelength = 2 * std::numbers::pi / theta;
    switch (o.scaling) {
      case RopeScaling::kLinear:
        return theta / o.factor;
      case RopeScaling::kYarn: {
        auto dimension = [&](double turns) {
          return n * std::log(original / (turns * 2 * std::numbers::pi)) / (2 * std::log(o.base));
        };
        const double low = std::max(std::floor(dimension(o.beta_fast)), 0.0);
        const double high = std::min(std::ceil(dimension(o.beta_slow)), n - 1);
        double ramp = (static_cast<double>(i) - low) / std::max(high - low, 0.001);
        ramp = std::min(std::max(ramp, 0.0), 1.0);
        const double extrapolated = (1 - ramp) * o.extrapolation;
        return theta / o.factor * (1 - extrapolated) + theta * extrapolated;
      }
      case RopeScaling::kLlama3: {
        if (wavelength > original / o.low_factor) return theta / o.factor;
        if (wavelength < original / o.high_factor) return theta;
        const double smooth = (original / wavelength - o.low_factor) / (o.high_factor - o.low_factor);
        return (1 - smooth) * theta / o.factor + smooth * theta;
      }
      default:
        return theta;
    }
  }

  // Where the two elements of pair i lie.
  int64_t first(int64_t i) const { return o.interleaved ? 2 * i : i; }
  int64_t second(int64_t i) const { return o.interleaved ? 2 * i + 1 : i + dims / 2; }

  // x of a head of d elements turned to `position`; get(c) is element c.
  template <class Get>
  std::vector<double> rotated(int64_t d, double position, Get get) const {
    std::vector<double> y(static_cast<size_t>(d));
    for (int64_t c = 0; c < d; ++c) y[static_cast<size_t>(c)] = get(c);
    const double m = magnitude();
    for (int64_t i = 0; i < dims / 2; ++i) {
      const double angle = position * frequency[static_cast<size_t>(i)], a = get(first(i)), b = get(second(i));
      y[static_cast<size_t>(first(i))] = m * (a * std::cos(angle) - b * std::sin(angle));
      y[static_cast<size_t>(second(i))] = m * (a * std::sin(angle) + b * std::cos(angle));
    }
    return y;
  }
};

}  // namespace attend::reference
