#pragma once
// The conformance suite: every entry of a registry against its reference and its contracts, on every instruction set
// that the machine has. `attend check` and the tests run the same.
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "attend/tensor/registry.h"

namespace attend {

struct ConformanceEntry {
  std::string_view name;
  int64_t passed, failed;
  double seconds;  // of all threads together
};

struct ConformanceOptions {
  std::vector<std::string> names;  // entries; empty: all
  uint64_t seed = 1;
  // Told of every entry that ran once it and all before it are finished, from the calling thread.
  std::function<void(const ConformanceEntry&)> finished = {};
};

struct ConformanceCase {
  std::string name, detail;  // "softmax/avx512/B1 Hq4 ../reference"; what went wrong or why it was skipped
};

struct ConformanceReport {
  int64_t passed = 0;
  std::vector<ConformanceCase> failures, skipped;
};

// On every usable instruction set, or on context.isa alone if it is set; context.threads of them side by side, with one
// report for any number. Throws Error(kSpec) for an unknown name, Error(kCancelled).
ConformanceReport check_conformance(const Registry& registry, const ConformanceOptions& options, Context& context);

}  // namespace attend
