#include "attend/tensor/registry.h"

#include "attend/exact/register.h"
#include "attend/kv/register.h"
#include "attend/sparse/register.h"

namespace attend {

const Registry& registry() {
  static const Registry all = [] {
    Registry r;
    register_exact(r);
    register_sparse(r);
    register_kv(r);
    return r;
  }();
  return all;
}

}  // namespace attend
