#include "attend/tensor/view.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <span>

#include "attend/tensor/error.h"

namespace attend {

void require_array_type(DType type) {
  if (is_quantised(type))
    throw Error(ErrorKind::kArgument, "array", "type", name_of(type), "is of stored keys: arrays can't have it");
}

View dense_view(void* data, DType type, int rank, const Shape& shape) {
  require_array_type(type);
  View view{.data = data, .type = type, .rank = rank};
  int64_t stride = 1;
  for (int a = rank - 1; a >= 0; --a) {
    view.shape[a] = shape[a];
    view.stride[a] = stride;
    stride *= shape[a];
  }
  return view;
}

View dense_view(void* data, DType type, std::initializer_list<int64_t> shape) {
  Shape extents{};
  std::copy(shape.begin(), shape.end(), extents.begin());
  return dense_view(data, type, static_cast<int>(shape.size()), extents);
}

std::string to_string(const View& view) {
  return fmt::format("[{}]", fmt::join(std::span(view.shape.data(), static_cast<size_t>(view.rank)), ", "));
}

double value_at(const View& view, int64_t index) {
  int64_t offset = 0;
  for (int a = view.rank - 1; a >= 0; --a) {
    offset += index % view.shape[a] * view.stride[a];
    index /= view.shape[a];
  }
  switch (view.type) {
    case DType::kF32:
      return view.as<float>()[offset];
    case DType::kF16:
      return to_f32(view.as<F16>()[offset]);
    case DType::kBF16:
      return to_f32(view.as<BF16>()[offset]);
    case DType::kF64:
      return view.as<double>()[offset];
    case DType::kI32:
      return view.as<int32_t>()[offset];
    case DType::kI64:
      return static_cast<double>(view.as<int64_t>()[offset]);
    case DType::kBool:
      return view.as<uint8_t>()[offset] != 0;
    case DType::kQ8_0:
    case DType::kQ4_0:
    case DType::kQ4_1:
    case DType::kQ2_1:
    case DType::kQ4_C:
    case DType::kQ2_C:
      require_array_type(view.type);
  }
  return 0;
}

}  // namespace attend
