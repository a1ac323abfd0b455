#include "attend/tensor/operator.h"

#include <algorithm>
#include <charconv>
#include <sstream>
#include <utility>

#include "attend/tensor/error.h"

namespace attend {
namespace {

int64_t axis_size(std::string_view name, const Entry& entry, const Spec& spec, const Sizes& s) {
  const std::pair<std::string_view, int64_t> axes[] = {
      {"B", s.b},   {"Hq", s.hq}, {"Hkv", s.hkv}, {"Tq", s.tq},
      {"Tk", s.tk}, {"D", s.d},   {"Dv", s.dv},   {"T", std::max(s.tq, s.tk)}};
  for (const auto& [axis, size] : axes)
    if (axis == name) return size;
  int64_t number = -1;
  std::from_chars(name.data(), name.data() + name.size(), number);
  if (number < 0 && entry.axis) number = entry.axis(name, spec, s);
  if (number < 0) throw Error(ErrorKind::kUnsupported, entry.name, "axis", name, "has no size");
  return number;
}

}  // namespace

void Operator::backward(const Tensors&, const Tensors&, const Tensors&, const Tensors&, Context&) const {
  throw Error(ErrorKind::kUnsupported, "backward: this mechanism has no backward pass");
}

void Operator::turn_keys(const View&, std::span<const int32_t>, Context&) const {
  throw Error(ErrorKind::kUnsupported, "turn_keys: this mechanism turns no keys");
}

void Operator::add_weights(const Tensors&, const View&, const WeightPlaces&, Context&) const {
  throw Error(ErrorKind::kUnsupported, "add_weights: this mechanism gives no weights");
}

void Operator::forward_and_add_weights(const Tensors& in, const Tensors& out, const WeightPlaces& to,
                                       Context& context) const {
  const auto lse = out.find("lse");
  if (lse == out.end()) throw Error(ErrorKind::kArgument, "add_weights", "out", "", "must name lse");
  forward(in, out, Form::kAny, context);
  add_weights(in, std::get<View>(lse->second), to, context);
}

Shape port_shape(const Entry& entry, const Port& port, const Spec& spec, const Sizes& sizes, int& rank) {
  Shape shape{};
  rank = 0;
  std::istringstream words{std::string(port.shape)};
  for (std::string word; words >> word;) shape[static_cast<size_t>(rank++)] = axis_size(word, entry, spec, sizes);
  return shape;
}

}  // namespace attend
