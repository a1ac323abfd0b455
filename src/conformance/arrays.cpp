#include "conformance/arrays.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <sstream>

#include "attend/tensor/error.h"

namespace attend::conformance {
namespace {

// As f32, bf16 and f16 this pattern is a NaN: what is not written, or read too far, shows.
constexpr std::byte kPoison{0xff};
constexpr int64_t kGuardBytes = 256;

int64_t offset_of(const View& v, int64_t index) {
  int64_t offset = 0;
  for (int a = v.rank - 1; a >= 0; --a) {
    offset += index % v.shape[a] * v.stride[a];
    index /= v.shape[a];
  }
  return offset;
}

}  // namespace

std::string text_of(const Sizes& s) {
  return fmt::format("B{} Hq{} Hkv{} Tq{} Tk{} D{} Dv{}", s.b, s.hq, s.hkv, s.tq, s.tk, s.d, s.dv);
}

View part(const View& view, const Port& port, std::string_view axis, int64_t first, int64_t count) {
  View slice = view;
  std::istringstream words{std::string(port.shape)};
  int index = 0;
  for (std::string word; words >> word; ++index) {
    if (word != axis) continue;
    slice.data = view.as<char>() + first * view.stride[index] * size_of(view.type);
    slice.shape[index] = count;
  }
  return slice;
}

Guarded::Guarded(DType type, int rank, const Shape& shape, Layout layout) {
  view_ = dense_view(nullptr, type, rank, shape);
  int64_t misalign = 0;
  if (layout == Layout::kStrided && rank == 4) {
    const int64_t row = shape[3] + 3;
    view_.stride = {shape[1] * shape[2] * row, row, shape[1] * row, 1};
    misalign = 1;
  }
  int64_t span = view_.count() == 0 ? 0 : 1;
  for (int a = 0; a < rank && span > 0; ++a) span += (shape[static_cast<size_t>(a)] - 1) * view_.stride[a];
  const int64_t size = size_of(type), begin = kGuardBytes + misalign * size;
  bytes_.assign(static_cast<size_t>(begin + span * size + kGuardBytes), kPoison);
  element_.assign(bytes_.size(), 0);
  const int64_t width = rank == 0 ? 1 : shape[static_cast<size_t>(rank - 1)];  // rows are dense
  for (int64_t i = 0; i < view_.count(); i += width)
    std::fill_n(element_.begin() + begin + offset_of(view_, i) * size, width * size, uint8_t{1});
  before_ = bytes_;
  view_.data = bytes_.data() + begin;
}

bool Guarded::intact() const {
  for (size_t i = 0; i < bytes_.size(); ++i)
    if (!element_[i] && bytes_[i] != before_[i]) return false;
  return true;
}

void store(const View& v, int64_t index, double value) {
  const int64_t at = offset_of(v, index);
  switch (v.type) {
    case DType::kF32:
      v.as<float>()[at] = static_cast<float>(value);
      break;
    case DType::kF16:
      v.as<F16>()[at] = to_f16(static_cast<float>(value));
      break;
    case DType::kBF16:
      v.as<BF16>()[at] = to_bf16(static_cast<float>(value));
      break;
    case DType::kF64:
      v.as<double>()[at] = value;
      break;
    case DType::kI32:
      v.as<int32_t>()[at] = static_cast<int32_t>(value);
      break;
    case DType::kI64:
      v.as<int64_t>()[at] = static_cast<int64_t>(value);
      break;
    case DType::kBool:
      v.as<uint8_t>()[at] = value != 0;
      break;
    case DType::kQ8_0:
    case DType::kQ4_0:
    case DType::kQ4_1:
    case DType::kQ2_1:
    case DType::kQ4_C:
    case DType::kQ2_C:
      break;  // no array has them
  }
}

void fill(const View& view, const Port& port, const Sizes& sizes, double deviation, Random& random) {
  const int64_t count = view.count();
  if (port.name == "documents") {  // up to four documents
    const int64_t length = std::max(sizes.tq, sizes.tk);
    std::uniform_int_distribution<int64_t> cut(0, length);
    for (int64_t b = 0; b < sizes.b; ++b) {
      const int64_t a = cut(random), c = cut(random), e = cut(random);
      for (int64_t t = 0; t < length; ++t) store(view, b * length + t, (t >= a) + (t >= c) + (t >= e));
    }
    return;
  }
  if (port.name == "kv_lens") {
    std::uniform_int_distribution<int64_t> length(0, sizes.tk);
    for (int64_t i = 0; i < count; ++i) store(view, i, static_cast<double>(i == 0 ? sizes.tk : length(random)));
    return;
  }
  if (port.name == "q_positions") {
    std::uniform_int_distribution<int64_t> position(-1, std::max(sizes.tk, sizes.tq) - 1);
    for (int64_t i = 0; i < count; ++i) store(view, i, static_cast<double>(position(random)));
    return;
  }
  if (port.low < port.high) {
    std::uniform_real_distribution<double> uniform(port.low, port.high);
    for (int64_t i = 0; i < count; ++i) store(view, i, uniform(random));
    return;
  }
  std::normal_distribution<double> normal(0, deviation);
  for (int64_t i = 0; i < count; ++i) store(view, i, normal(random));
}

int64_t first_difference(const View& a, const View& b) {
  for (int64_t i = 0; i < a.count(); ++i)
    if (std::memcmp(a.as<char>() + offset_of(a, i) * size_of(a.type), b.as<char>() + offset_of(b, i) * size_of(b.type),
                    static_cast<size_t>(size_of(a.type))) != 0)
      return i;
  return -1;
}

}  // namespace attend::conformance
