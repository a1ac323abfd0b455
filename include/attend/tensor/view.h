#pragma once
// A strided view of up to six axes. It never owns; strides are in elements.
#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "attend/tensor/dtype.h"

namespace attend {

inline constexpr int kMaxRank = 6;
using Shape = std::array<int64_t, kMaxRank>;

struct View {
  void* data = nullptr;
  DType type = DType::kF32;
  int rank = 0;
  Shape shape{}, stride{};

  int64_t count() const {
    int64_t n = 1;
    for (int a = 0; a < rank; ++a) n *= shape[a];
    return n;
  }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  // The address of an element; missing trailing indices are 0.
  template <class T>
  T* at(std::initializer_list<int64_t> index) const {
    int64_t offset = 0;
    int axis = 0;
    for (int64_t i : index) offset += i * stride[axis++];
    return static_cast<T*>(data) + offset;
  }
};

// Throws Error(kArgument) for a type that only key views carry.
void require_array_type(DType type);

// A dense row-major view of `data`, of an array type.
View dense_view(void* data, DType type, std::initializer_list<int64_t> shape);
View dense_view(void* data, DType type, int rank, const Shape& shape);

// "[2, 8, 128, 64]", for messages.
std::string to_string(const View& view);

// Element `index` (row-major over the view's shape) as a double, whatever the type.
double value_at(const View& view, int64_t index);

}  // namespace attend
