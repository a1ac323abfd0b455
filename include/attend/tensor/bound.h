#pragma once
// Bounds on the error of what attend computes, from lengths, epsilons and norms: the one place that tests, `check` and
// benchmarks take them from.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

namespace attend::bound {

inline constexpr double kEpsilon = 0x1p-24;  // relative error of one rounding to f32

// Of n roundings in a row: n eps / (1 - n eps) (Higham, Accuracy and Stability of Numerical Algorithms, 3.1).
inline double gamma(int64_t n) {
  return static_cast<double>(n) * kEpsilon / (1 - static_cast<double>(n) * kEpsilon);
}

// |computed - exact| of an f32 sum of k products by fma, where `magnitude` is the exact sum of |x| |w|; what underflows
// adds at most half of the smallest number each time.
inline double product(int64_t k, double magnitude) {
  return gamma(k) * magnitude + static_cast<double>(k) * std::numeric_limits<float>::denorm_min();
}

// Of a product in integers with activations quantised in blocks of 32, x = scale * q with scale = max |x| / levels:
//   rounding x to q moves each element by at most scale / 2, times (1 + 3 eps) for the rounding of scale and levels /
//   max; blocks with max |x| < 2^-100 count as zero; integer sums are exact; each half block adds at most 4 roundings
//   (one of them of the integer, if above 2^24) and the running sum 1.
// `w` are the dequantised weights, `terms` the magnitude of what is added up to make each of them, |d u| + |m| (|w| for
// types without a minimum). Sizes are equal, a multiple of 32.
// `levels` is activation_levels() of the type (attend/simd/product.h).
inline double quantised_product(std::span<const float> x, std::span<const float> w, std::span<const float> terms,
                                double levels) {
  double rounding = 0, magnitude = 0;
  for (size_t begin = 0; begin < x.size(); begin += 32) {
    double largest = 0, weights = 0, sum = 0;
    for (size_t i = begin; i < begin + 32; ++i) largest = std::max(largest, std::fabs(static_cast<double>(x[i])));
    for (size_t i = begin; i < begin + 32; ++i) {
      weights += std::fabs(static_cast<double>(w[i]));
      sum += std::fabs(static_cast<double>(terms[i])) * (std::fabs(static_cast<double>(x[i])) + largest / levels);
    }
    rounding += weights * (largest < 0x1p-100 ? largest : largest / (2 * levels) * (1 + 2 * levels * 4 * kEpsilon));
    magnitude += sum;
  }
  const int64_t k = static_cast<int64_t>(x.size());
  // The dequantised weight itself is rounded twice, and the product does not use it.
  return rounding + product(k / 16 * 2 + 8, magnitude);
}

// What a call of softmax attention has to do with.
struct SoftmaxNorms {
  int64_t keys, d;    // longest row, width of the dot products
  double query, key;  // largest Euclidean norms of a row
  double value;       // largest magnitude of a value
  double scale;       // as applied
  double bias = 0;    // largest finite magnitude
  double softcap = 0;
  // Of operands rounded to a type narrower than f32, relative to Euclidean norms: of queries and keys; and the error of
  // products of weights and values, relative to the largest value.
  double operand = 0, weighted = 0;
};

// Largest absolute error of a score: the dot product's rounding (q scaled, then d fused steps), soft-cap (its tanh is
// within 8 epsilon), bias.
inline double softmax_score(const SoftmaxNorms& n) {
  const double score = n.scale * n.query * n.key;
  return kEpsilon * (static_cast<double>(n.d + 2) * score + (n.softcap > 0 ? 10 * std::min(n.softcap, score) : 0) +
                     n.bias + score) +
         n.operand * (2 + n.operand) * score;
}

// Largest relative error of a weight exp(s - max): twice a score's, that of exp itself (4 epsilon) and of the range
// that exp sees (0.4 epsilon, see exp_of).
inline double softmax_weight(const SoftmaxNorms& n) {
  return std::expm1(2 * softmax_score(n)) + 6 * kEpsilon;
}

// Of the products of weights with values, both rounded to the type of operands.
inline double softmax_operands(const SoftmaxNorms& n) {
  return n.weighted == 0 ? 0 : n.weighted * (1 + softmax_weight(n));  // the weight may be infinite
}

// Rounding errors of Compute::kBF16: half a unit in the last of 8 bits.
inline void round_to_bf16(SoftmaxNorms& n) {
  n.operand = 0x1p-8;
  n.weighted = 2 * n.operand + n.operand * n.operand;
}

// Of Compute::kInt8: elements move by max |x| / 254, so rows of length d by at most sqrt(d) / 254 of their norm. 64
// weights that share a scale move by 1 / 510 of the largest of them times the largest value; the values by 1 / 254.
inline void round_to_int8(SoftmaxNorms& n) {
  n.operand = std::sqrt(static_cast<double>(n.d)) / 254 + 4 * kEpsilon;
  n.weighted = 64.0 / 510 + 1.0 / 254 + 64.0 / 510 / 254;
}

// Of Compute::kInt8Qk: queries as above; keys less a mean that no key is longer than, so at most twice as long. The
// mean comes back by a dot product of its own; that it is rounded itself does not matter.
inline void round_keys_to_int8(SoftmaxNorms& n) {
  round_to_bf16(n);
  n.operand = 2 * std::sqrt(static_cast<double>(n.d)) / 254 + static_cast<double>(n.d + 10) * kEpsilon;
}

// Of Compute::kFp8: half a unit in the last of 4 bits, or 2^-10 / 448 of the largest where numbers are subnormal.
inline void round_to_e4m3(SoftmaxNorms& n) {
  const double subnormal = 0x1p-10 / 448, unit = 0x1p-4;
  n.operand = unit + std::sqrt(static_cast<double>(n.d)) * subnormal;
  n.weighted = (2 + unit) * (unit + 64 * subnormal);
}

// |out - reference|: weights in numerator and denominator, then sums of up to 512 terms a split and one fold a split.
inline double softmax(const SoftmaxNorms& n) {
  const double terms = static_cast<double>(std::min<int64_t>(n.keys, 512) + 6 * (n.keys / 512 + 1));
  return n.value * (2 * softmax_weight(n) + softmax_operands(n) + 2 * kEpsilon * terms) + 1e-37;
}

// |lse - reference|.
inline double softmax_lse(const SoftmaxNorms& n) {
  const double terms = static_cast<double>(std::min<int64_t>(n.keys, 512) / 16 + 8 + 6 * (n.keys / 512 + 1));
  const double magnitude = n.scale * n.query * n.key + n.bias + std::log(static_cast<double>(n.keys) + 1);
  return softmax_score(n) + softmax_weight(n) + kEpsilon * (terms + 2 * magnitude + 2);
}

// What a backward pass of softmax attention has to do with, beside the forward pass.
struct SoftmaxGradientNorms {
  SoftmaxNorms forward;
  int64_t rows, dv;         // queries of one kv head: Tq * Hq / Hkv; width of a value
  double value;             // largest Euclidean norm of a value row
  double d_out, d_lse = 0;  // largest Euclidean norm of a row of the gradient of out; largest |gradient of lse|
  double q_max, k_max;      // largest magnitudes of an element of q and k
};

// Largest |d score| divided by its weight: dS = P (dP - delta + dlse) with |dP|, |delta| <= |dO| |v|.
inline double softmax_slope(const SoftmaxGradientNorms& n) {
  return 2 * n.d_out * n.value + n.d_lse;
}

// Error of d score divided by its weight: that of the weight, of the dot products dO . v and dO . O, of O itself (a
// relative error of each weight, so at most that times |v|), of four more operations; with a soft-cap, of the factor
// 1 - tanh^2 (its tanh is within 8 epsilon, and moves by at most 2 / cap times the error of the score).
inline double softmax_slope_error(const SoftmaxGradientNorms& n) {
  const double slope = softmax_slope(n), product_of_norms = n.d_out * n.value;
  const double weight =
      2 * softmax_weight(n.forward) +
      kEpsilon * static_cast<double>(std::min<int64_t>(n.forward.keys, 512) + 6 * (n.forward.keys / 512 + 1));
  double error = weight * (slope + 2 * product_of_norms) + softmax_operands(n.forward) * product_of_norms +
                 2 * gamma(n.dv + 4) * product_of_norms + 4 * kEpsilon * slope;
  if (n.forward.softcap > 0) error += slope * (20 * kEpsilon + 2 / n.forward.softcap * softmax_score(n.forward));
  return error;
}

// Weights of a row sum to at most 1: sums over keys of P x are at most max x.
inline double softmax_dq(const SoftmaxGradientNorms& n) {
  return n.forward.scale * n.k_max * (softmax_slope_error(n) + gamma(n.forward.keys + 8) * softmax_slope(n)) + 1e-37;
}
inline double softmax_dk(const SoftmaxGradientNorms& n) {
  return static_cast<double>(n.rows) * n.forward.scale * n.q_max *
             (softmax_slope_error(n) + gamma(n.rows + 8) * softmax_slope(n)) +
         1e-37;
}
inline double softmax_dv(const SoftmaxGradientNorms& n) {
  const double weight = 2 * softmax_weight(n.forward) + kEpsilon * 8;
  return static_cast<double>(n.rows) * n.d_out * (weight + gamma(n.rows + 8)) + 1e-37;
}
// Of a sum of `terms` gradients of scores.
inline double softmax_dbias(const SoftmaxGradientNorms& n, int64_t terms) {
  return static_cast<double>(terms) * (softmax_slope_error(n) + gamma(terms + 8) * softmax_slope(n)) + 1e-37;
}

}  // namespace attend::bound
