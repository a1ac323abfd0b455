#include "transposed.h"

#include <vector>

namespace attend {

PackedWeight transposed(const PackedWeight& matrix, Context& context) {
  Buffer rows(matrix.n * matrix.k * static_cast<int64_t>(sizeof(float)));
  std::vector<float> row(static_cast<size_t>(matrix.k));
  for (int64_t n = 0; n < matrix.n; ++n) {
    unpack_row(matrix, n, row.data());
    for (int64_t k = 0; k < matrix.k; ++k) rows.as<float>()[k * matrix.n + n] = row[static_cast<size_t>(k)];
  }
  return pack_weight(WeightType::kF32, rows.data(), matrix.k, matrix.n, ComputeMode::kF32, context);
}

}  // namespace attend
