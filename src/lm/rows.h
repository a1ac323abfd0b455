#pragma once
// Rows of activations in memory that grows.
#include "attend/tensor/buffer.h"
#include "attend/tensor/view.h"

namespace attend {

// Memory that grows and stays.
inline float* reserve(Buffer& buffer, int64_t floats) {
  const int64_t bytes = floats * static_cast<int64_t>(sizeof(float));
  if (buffer.bytes() < bytes) {
    buffer = Buffer();
    buffer = Buffer(bytes);
  }
  return buffer.as<float>();
}

// Queries, keys or values of all tokens, [rows, heads * size], as attention sees them.
inline View by_head(float* rows_of, int heads, int64_t rows, int64_t size) {
  View view = dense_view(rows_of, DType::kF32, {1, heads, rows, size});
  view.stride = {heads * rows * size, size, heads * size, 1};
  return view;
}

}  // namespace attend
