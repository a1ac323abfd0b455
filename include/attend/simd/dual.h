#pragma once
// Numbers that carry a derivative: a score function written as a template gives its own slope.
//
//   struct Softcap {
//     template <class T> T operator()(T s, int batch, int head, int i, int j) const { return 20.0f * tanh(s / 20.0f); }
//   };
//   Softcap f;
//   const Hook value = make_hook(f), slope = score_slope(f);
//   softmax_attention_backward(..., {.score = &value, .score_slope = &slope});
#include <cmath>

#include "attend/simd/hook.h"

namespace attend {

struct Dual {
  float value = 0, slope = 0;
  Dual() = default;
  constexpr Dual(float v, float d = 0) : value(v), slope(d) {}
};

inline Dual operator+(Dual a, Dual b) {
  return {a.value + b.value, a.slope + b.slope};
}
inline Dual operator-(Dual a, Dual b) {
  return {a.value - b.value, a.slope - b.slope};
}
inline Dual operator-(Dual a) {
  return {-a.value, -a.slope};
}
inline Dual operator*(Dual a, Dual b) {
  return {a.value * b.value, a.slope * b.value + a.value * b.slope};
}
inline Dual operator/(Dual a, Dual b) {
  const float q = a.value / b.value;
  return {q, (a.slope - q * b.slope) / b.value};
}
inline bool operator<(Dual a, Dual b) {
  return a.value < b.value;
}
inline bool operator>(Dual a, Dual b) {
  return a.value > b.value;
}
inline Dual exp(Dual a) {
  const float e = std::exp(a.value);
  return {e, e * a.slope};
}
inline Dual log(Dual a) {
  return {std::log(a.value), a.slope / a.value};
}
inline Dual sqrt(Dual a) {
  const float r = std::sqrt(a.value);
  return {r, a.slope / (2 * r)};
}
inline Dual tanh(Dual a) {
  const float t = std::tanh(a.value);
  return {t, (1 - t * t) * a.slope};
}
inline Dual abs(Dual a) {
  return a.value < 0 ? -a : a;
}

// The same names for plain numbers, so that one template serves both.
using std::abs, std::exp, std::log, std::sqrt, std::tanh;

// d f(s) / d s, for functors whose first argument may be a Dual. `f` must outlive the calls that use the hook.
template <class F>
Hook score_slope(F& f) {
  return internal::make_hook(f, [](F& g, float s, int batch, int head, int32_t i, int32_t j) {
    return g(Dual(s, 1.0f), batch, head, i, j).slope;
  });
}

}  // namespace attend
