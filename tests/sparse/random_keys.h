#pragma once
// Random keys and an index over them, for tests of selectors.
#include <memory>
#include <random>
#include <vector>

#include "attend/sparse/selector.h"
#include "attend/tensor/registry.h"

namespace attend::test {

inline constexpr int64_t kD = 24;
inline constexpr int kGroup = 3;

inline std::vector<float> normal(int64_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> draw;
  std::vector<float> x(static_cast<size_t>(n));
  for (float& e : x) e = draw(random);
  return x;
}

struct RandomKeys {
  std::vector<float> rows;
  KeyRun run;

  RandomKeys(int64_t n, uint64_t seed) : rows(normal(n * kD, seed)) {}
  // A view of the first n; one at a time.
  KeyView first(int64_t n) {
    run = {.k = rows.data(), .v = rows.data(), .k_stride = kD, .v_stride = kD, .first_slot = 0, .count = n};
    KeyView view;
    view.runs = {&run, 1};
    return view;
  }
};

inline std::unique_ptr<SelectorIndex> open_index(const char* spec, Isa isa) {
  return registry()
      .make<Selector>(parse_spec(spec))
      ->open({.layers = 2, .kv_heads = 2, .group = kGroup, .d = kD, .isa = isa});
}

}  // namespace attend::test
