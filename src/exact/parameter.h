#pragma once
// Checks of the arrays that a mechanism has beside q, k and v.
#include <initializer_list>
#include <string_view>

#include "attend/exact/softmax.h"

namespace attend::exact {

// f32, of the given shape, with a dense last axis, apart from the outputs. An axis of the view may be 1 where `repeat`
// names it by its index. Throws Error(kArgument); absent views pass unless `required`.
struct Parameter {
  std::string_view name;
  const View& view;
  std::initializer_list<int64_t> shape;
  std::string_view axes;  // "[Hq, D]", for messages
  bool required = false;
  int repeat = -1;
};
void check_parameter(std::string_view op, const Parameter& parameter, const AttnOut& out);

// The arguments that not every mechanism takes must be absent. Throws Error(kArgument).
void require_absent(std::string_view op, std::string_view name, const View& view);
void require_arrays(std::string_view op, const Qkv& in);        // no key views
void require_arrays_alone(std::string_view op, const Qkv& in);  // and nothing beside q, k and v

// Whether two views reach the same bytes, or bytes between each other's; absent ones don't.
bool overlap(const View& a, const View& b);

}  // namespace attend::exact
