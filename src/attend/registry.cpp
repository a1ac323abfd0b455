#include "attend/tensor/registry.h"

namespace attend {

const Registry& registry() {
  static const Registry all = [] {
    Registry r;
    return r;
  }();
  return all;
}

}  // namespace attend
