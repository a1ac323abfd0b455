#include "kv/recode.h"

#include <algorithm>
#include <numeric>

#include "attend/simd/key_rows.h"
#include "attend/tensor/quantised_row.h"

namespace attend::kv {

Recoded recode(const KeyView& old, int64_t first, std::span<const int32_t> groups, const CodecStage& coding, int64_t d,
               int64_t dv, Isa isa) {
  const int64_t count = std::accumulate(groups.begin(), groups.end(), int64_t{0});
  const int64_t k_row = row_bytes(coding.keys, d), v_row = row_bytes(coding.values, dv);
  Recoded to;
  to.k = Buffer(count * k_row);
  to.v = Buffer(count * v_row);
  to.rows = {to.k.data(), to.v.data(), k_row, v_row, 0, count, coding.keys, coding.values};
  const Buffer wide(count * std::max(d, dv) * static_cast<int64_t>(sizeof(float)));
  float* x = wide.as<float>();
  read_keys(old, first, count, d, isa, x);
  if (is_by_channel(coding.keys)) {
    const int64_t all = static_cast<int64_t>(groups.size());
    to.scales = Buffer(2 * all * d * static_cast<int64_t>(sizeof(F16)));
    F16 *scale = to.scales.as<F16>(), *offset = scale + all * d;
    to.groups = {scale, offset, d, d, 0, all, DType::kF16, DType::kF16};
    int64_t row = 0;
    for (const int32_t rows : groups) {
      quantise_channels(x + row * d, rows, d, coding.keys, scale, offset, to.k.data() + row * k_row);
      row += rows, scale += d, offset += d;
    }
  } else {
    for (int64_t r = 0; r < count; ++r) quantise_row(x + r * d, d, coding.keys, to.k.data() + r * k_row);
  }
  read_values(old, first, count, dv, isa, x);
  for (int64_t r = 0; r < count; ++r) quantise_row(x + r * dv, dv, coding.values, to.v.data() + r * v_row);
  return to;
}

}  // namespace attend::kv
