#pragma once
// Random keys and an index over them, for tests of selectors.
#include <memory>
#include <vector>

#include "attend/sparse/selector.h"
#include "attend/tensor/registry.h"
#include "support/normal.h"

namespace attend::test {

inline constexpr int64_t kD = 24;
inline constexpr int kGroup = 3;

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

// Keys from `from` on and their queries, [rows, group, d], reach the index.
inline void tell(SelectorIndex& index, const KeyView& keys, const float* q, int64_t from, int64_t rows, int64_t group,
                 int64_t d) {
  const std::vector<float> lse(static_cast<size_t>(rows * group));
  index.update(0, 0, keys, from);
  index.queried(0, 0, keys,
                {.q = q, .lse = lse.data(), .rows = rows, .row_stride = group * d, .lse_stride = rows, .scale = 1});
}

}  // namespace attend::test
