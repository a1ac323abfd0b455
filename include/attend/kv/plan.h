#pragma once
// Which heads keep their keys in another way than the policy's retention would.
#include <string_view>

#include "attend/kv/retention.h"

namespace attend {

struct Plan : Component {
  // Throws Error(kSpec) for a model that the plan was not made for.
  virtual void check(std::string_view model, int layers, int kv_heads) const = 0;

  // Null: the head is left to the policy's retention.
  virtual const Retention* retention(int layer, int kv_head) const = 0;
};

}  // namespace attend
