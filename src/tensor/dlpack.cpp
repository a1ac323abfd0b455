#include "attend/tensor/dlpack.h"

#include <fmt/format.h>

#include <memory>

#include "attend/tensor/error.h"

namespace attend {
namespace {

constexpr uint8_t kBoolCode = 6;  // kDLBool of later versions

struct Exchange {
  DType type;
  DLDataType code;
};

constexpr Exchange kTypes[] = {
    {DType::kF32, {kDLFloat, 32, 1}},   {DType::kF16, {kDLFloat, 16, 1}}, {DType::kF64, {kDLFloat, 64, 1}},
    {DType::kBF16, {kDLBfloat, 16, 1}}, {DType::kI32, {kDLInt, 32, 1}},   {DType::kI64, {kDLInt, 64, 1}},
    {DType::kBool, {kBoolCode, 8, 1}},
};

DType type_of(const DLDataType& code) {
  for (const Exchange& e : kTypes)
    if (e.code.code == code.code && e.code.bits == code.bits && e.code.lanes == code.lanes) return e.type;
  throw Error(ErrorKind::kUnsupported, "dlpack", "element type",
              fmt::format("code {}, {} bits, {} lanes", code.code, code.bits, code.lanes),
              "must be f32, f16, bf16, f64, i32, i64 or bool");
}

// What a handed-over array lives in.
struct Holder {
  Array array;
  DLManagedTensor managed;
};

}  // namespace

View from_dlpack(const DLTensor& tensor) {
  if (tensor.device.device_type != kDLCPU)
    throw Error(ErrorKind::kUnsupported, "dlpack", "device type",
                fmt::format("{}", static_cast<int>(tensor.device.device_type)), "must be the CPU");
  if (tensor.ndim < 0 || tensor.ndim > kMaxRank)
    throw Error(ErrorKind::kUnsupported, "dlpack", "axes", fmt::format("{}", tensor.ndim),
                fmt::format("must be at most {}", kMaxRank));
  View view{.data = static_cast<char*>(tensor.data), .type = type_of(tensor.dtype), .rank = tensor.ndim};
  int64_t stride = 1;
  for (int a = tensor.ndim - 1; a >= 0; --a) {
    if (tensor.shape[a] < 0)
      throw Error(ErrorKind::kArgument, "dlpack", fmt::format("shape[{}]", a), fmt::format("{}", tensor.shape[a]),
                  "must not be negative");
    view.shape[a] = tensor.shape[a];
    view.stride[a] = tensor.strides ? tensor.strides[a] : stride;
    stride *= tensor.shape[a];
  }
  if (!tensor.data && view.count() != 0) throw Error(ErrorKind::kArgument, "dlpack", "data", "null", "must be given");
  if (tensor.data) view.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  return view;
}

DLManagedTensor* to_dlpack(Array array) {
  require_array_type(array.view.type);
  auto holder = std::make_unique<Holder>(Holder{std::move(array), {}});
  View& view = holder->array.view;
  DLDataType code{};
  for (const Exchange& e : kTypes)
    if (e.type == view.type) code = e.code;
  holder->managed = {.dl_tensor = {.data = view.data,
                                   .device = {kDLCPU, 0},
                                   .ndim = view.rank,
                                   .dtype = code,
                                   .shape = view.shape.data(),
                                   .strides = view.stride.data(),
                                   .byte_offset = 0},
                     .manager_ctx = holder.get(),
                     .deleter = [](DLManagedTensor* self) { delete static_cast<Holder*>(self->manager_ctx); }};
  return &holder.release()->managed;
}

}  // namespace attend
