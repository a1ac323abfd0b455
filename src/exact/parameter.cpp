#include "exact/parameter.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "attend/tensor/error.h"

namespace attend::exact {
namespace {

// Lowest and one past the highest byte that a view reaches.
std::pair<const char*, const char*> extent(const View& v) {
  int64_t low = 0, high = 0;
  for (int a = 0; a < v.rank; ++a) {
    if (v.shape[a] == 0) return {nullptr, nullptr};
    const int64_t reach = (v.shape[a] - 1) * v.stride[a];
    (reach < 0 ? low : high) += reach;
  }
  const char* base = v.as<const char>();
  return {base + low * size_of(v.type), base + (high + 1) * size_of(v.type)};
}

}  // namespace

bool overlap(const View& a, const View& b) {
  if (!a.data || !b.data) return false;
  const auto [a0, a1] = extent(a);
  const auto [b0, b1] = extent(b);
  return a0 < b1 && b0 < a1;
}

void check_parameter(std::string_view op, const Parameter& p, const AttnOut& out) {
  const View& v = p.view;
  if (!v.data) {
    if (p.required) throw Error(ErrorKind::kArgument, op, p.name, "", "must be given");
    return;
  }
  if (v.type != DType::kF32)
    throw Error(ErrorKind::kArgument, op, fmt::format("{} type", p.name), name_of(v.type), "must be f32");
  bool fits = v.rank == static_cast<int>(p.shape.size());
  int axis = 0;
  for (int64_t n : p.shape) {
    fits = fits && (v.shape[axis] == n || (axis == p.repeat && v.shape[axis] == 1));
    ++axis;
  }
  if (!fits)
    throw Error(ErrorKind::kArgument, op, p.name, to_string(v),
                fmt::format("must be {} = [{}]", p.axes, fmt::join(p.shape, ", ")));
  if (v.shape[v.rank - 1] > 1 && v.stride[v.rank - 1] != 1)
    throw Error(ErrorKind::kArgument, op, fmt::format("{} innermost stride", p.name),
                fmt::format("{}", v.stride[v.rank - 1]), "must be 1");
  for (const View* written : {&out.out, &out.lse})
    if (overlap(*written, v))
      throw Error(ErrorKind::kArgument, op, written == &out.out ? "out" : "lse", "memory",
                  fmt::format("must not overlap {}", p.name));
}

void require_absent(std::string_view op, std::string_view name, const View& view) {
  if (view.data) throw Error(ErrorKind::kArgument, op, name, to_string(view), "is not taken");
}

void require_arrays(std::string_view op, const Qkv& in) {
  if (!in.keys.empty()) throw Error(ErrorKind::kArgument, op, "k", "key views", "must be an array");
}

void require_arrays_alone(std::string_view op, const Qkv& in) {
  require_arrays(op, in);
  for (const auto& [name, view] : {std::pair{"kv_lens", &in.kv_lens},
                                   {"q_positions", &in.q_positions},
                                   {"bias", &in.bias},
                                   {"sink_logits", &in.sink_logits},
                                   {"documents", &in.documents}})
    require_absent(op, name, *view);
}

}  // namespace attend::exact
