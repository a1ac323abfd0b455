#pragma once
// Some models divide the frequencies of their rotary embeddings by learned numbers, one a pair (GGUF's rope_freqs:
// Llama 3.1 and later). Mechanisms that turn queries and keys themselves take them where they implement this.
#include <span>

namespace attend {

class DividesFrequencies {
 public:
  virtual ~DividesFrequencies() = default;
  // Before the first call, with `dims` set and a scaling that does not depend on the text's length; else throws
  // Error(kUnsupported).
  virtual void divide_frequencies(std::span<const float> divisors) = 0;
};

}  // namespace attend
