#include "reference/inputs.h"

#include "attend/tensor/error.h"
#include "attend/tensor/quantised_row.h"

namespace attend::reference {
namespace {

double scalar(DType type, const char* p) {
  switch (type) {
    case DType::kF32:
      return *reinterpret_cast<const float*>(p);
    case DType::kF64:
      return *reinterpret_cast<const double*>(p);
    case DType::kF16:
      return to_f32(*reinterpret_cast<const F16*>(p));
    case DType::kBF16:
      return to_f32(*reinterpret_cast<const BF16*>(p));
    case DType::kI32:
      return *reinterpret_cast<const int32_t*>(p);
    case DType::kI64:
      return static_cast<double>(*reinterpret_cast<const int64_t*>(p));
    case DType::kBool:
      return *p != 0;
    case DType::kQ8_0:
    case DType::kQ4_0:
    case DType::kQ4_1:
    case DType::kQ2_1:
    case DType::kQ4_C:
    case DType::kQ2_C:
      throw Error(ErrorKind::kArgument, "reference", "type", name_of(type), "is of key views alone");
  }
  return 0;
}

}  // namespace

double element(const View& v, std::initializer_list<int64_t> index) {
  int axis = 0;
  int64_t offset = 0;
  for (int64_t i : index) {
    offset += v.shape[axis] == 1 ? 0 : i * v.stride[axis];
    ++axis;
  }
  return scalar(v.type, v.as<char>() + offset * size_of(v.type));
}

void store(const View& v, std::initializer_list<int64_t> index, double x) {
  if (v.type == DType::kF64) {
    *v.at<double>(index) = x;
  } else {
    *v.at<float>(index) = static_cast<float>(x);
  }
}

const View& required(const Tensors& t, std::string_view name) {
  const auto found = t.find(name);
  if (found == t.end() || !std::holds_alternative<View>(found->second))
    throw Error(ErrorKind::kArgument, "reference", name, "", "must be given");
  return std::get<View>(found->second);
}

View optional(const Tensors& t, std::string_view name) {
  const auto found = t.find(name);
  return found != t.end() && std::holds_alternative<View>(found->second) ? std::get<View>(found->second) : View{};
}

Keys::Keys(const Tensors& in, int64_t b, int64_t query_head, int64_t query_heads, int64_t batches) : batch(b) {
  const auto k = in.find("k");
  if (k != in.end() && std::holds_alternative<std::span<const KeyView>>(k->second)) {
    const auto views = std::get<std::span<const KeyView>>(k->second);
    const int64_t kv_heads = static_cast<int64_t>(views.size()) / batches;
    head = query_head / (query_heads / kv_heads);
    runs = &views[static_cast<size_t>(b * kv_heads + head)];
    count = runs->count();
    d_ = required(in, "q").shape[3];
    for (const KeyRun& run : runs->runs)
      if (is_quantised(run.v_type)) dv_ = required(in, "dv").shape[0];
    return;
  }
  k_ = required(in, "k");
  v_ = optional(in, "v");
  head = query_head / (query_heads / k_.shape[1]);
  count = k_.shape[2];
  if (const View lens = optional(in, "kv_lens"); lens.data) count = static_cast<int64_t>(element(lens, {b}));
}

double Keys::get(bool value, int64_t slot, int64_t c) const {
  if (!runs) return element(value ? v_ : k_, {batch, head, slot, c});
  for (const KeyRun& run : runs->runs)
    if (slot >= run.first_slot && slot < run.first_slot + run.count) {
      return static_cast<double>(
          element_of(value ? run.values() : run.keys(), slot - run.first_slot, value ? dv_ : d_, c));
    }
  return 0;
}

int64_t query_position(const Tensors& in, int64_t b, int64_t i) {
  if (const View positions = optional(in, "q_positions"); positions.data)
    return static_cast<int64_t>(element(positions, {b, i}));
  const View& q = required(in, "q");
  int64_t length = 0;  // one past the last position of any kv head
  for (int64_t h = 0; h < q.shape[1]; ++h)
    if (const Keys keys(in, b, h, q.shape[1], q.shape[0]); keys.count > 0)
      length = std::max(length, keys.position(keys.count - 1) + 1);
  return i + length - q.shape[2];
}

std::map<std::string, TensorSpec, std::less<>> attention_outputs(const Tensors& in) {
  const View &q = required(in, "q"), v = optional(in, "v");
  const int64_t dv = v.rank == 4 ? v.shape[3] : required(in, "dv").shape[0];
  return {{"out", {DType::kF64, 4, {q.shape[0], q.shape[1], q.shape[2], dv}}},
          {"lse", {DType::kF64, 3, {q.shape[0], q.shape[1], q.shape[2]}}}};
}

}  // namespace attend::reference
