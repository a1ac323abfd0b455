#pragma once
// How scores become weights.

namespace attend {

enum class Normalizer {
  kSoftmax,        // w[j] = exp(s[j]) / sum exp(s)
  kSignedSoftmax,  // w[j] = sign(s[j]) exp(|s[j]|) / sum exp(|s|)
  kSum,            // w[j] = f(s[j]) / sum f(s), 0 where the sum is 0; f is the weight hook
  kNone,           // w[j] = f(s[j])
};

}  // namespace attend
