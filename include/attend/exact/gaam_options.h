#pragma once
// Options of Gaussian adaptive attention; see attend/exact/gaam.h.

namespace attend {

struct GaamOptions {
  bool tokens = false;    // weights over tokens instead of over features
  double epsilon = 1e-8;  // joins the variance, and is the least that weights are divided by; above 0
};

}  // namespace attend
