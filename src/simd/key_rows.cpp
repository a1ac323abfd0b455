#include "attend/simd/key_rows.h"

#include <algorithm>

#include "attend/simd/dense.h"
#include "simd/split_layout.h"

namespace attend {
namespace {

// f(run, first row of it, rows, rows before them) for the parts of runs that hold slots [first, first + count).
template <class F>
void each_part(const KeyView& keys, int64_t first, int64_t count, F f) {
  for (const KeyRun& run : keys.runs) {
    const int64_t begin = std::max(first, run.first_slot), end = std::min(first + count, run.first_slot + run.count);
    if (begin < end) f(run, begin - run.first_slot, end - begin, begin - first);
  }
}

}  // namespace

void read_keys(const KeyView& keys, int64_t first, int64_t count, int64_t width, Isa isa, float* to) {
  each_part(keys, first, count, [&](const KeyRun& run, int64_t row, int64_t rows, int64_t before) {
    dense_kernels(isa).widen_run(run.keys().from(row), rows, width, to + before * width, width);
  });
}

void read_values(const KeyView& keys, int64_t first, int64_t count, int64_t width, Isa isa, float* to) {
  each_part(keys, first, count, [&](const KeyRun& run, int64_t row, int64_t rows, int64_t before) {
    dense_kernels(isa).widen_run(run.values().from(row), rows, width, to + before * width, width);
  });
}

bool reads_scattered_rows(Isa isa, int64_t rows, DType k_type, DType v_type, int64_t d, int64_t dv) {
  const auto plain = [](DType type) { return type == DType::kF32 || type == DType::kF16 || type == DType::kBF16; };
  return has_avx512(isa) && rows <= split_layout::kGroupRows && plain(k_type) && plain(v_type) &&
         d * size_of(k_type) % 32 == 0 && dv % 16 == 0;
}

}  // namespace attend
