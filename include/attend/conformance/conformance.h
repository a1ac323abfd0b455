#pragma once
// The conformance suite: every entry of a registry against its reference and its contracts, on every instruction set
// that the machine has. `attend check` and the tests run the same.
#include <cstdint>
#include <string>
#include <vector>

#include "attend/tensor/registry.h"

namespace attend {

struct ConformanceOptions {
  std::vector<std::string> names;  // entries; empty: all
  uint64_t seed = 1;
};

struct ConformanceCase {
  std::string name, detail;  // "softmax/avx512/B1 Hq4 ../reference"; what went wrong or why it was skipped
};

struct ConformanceReport {
  int64_t passed = 0;
  std::vector<ConformanceCase> failures, skipped;
};

// On every usable instruction set, or on context.isa alone if it is set. Throws Error(kSpec) for an unknown name,
// Error(kCancelled).
ConformanceReport check_conformance(const Registry& registry, const ConformanceOptions& options, Context& context);

}  // namespace attend
