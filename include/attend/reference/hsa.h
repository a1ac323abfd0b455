#pragma once
// The naive double-precision definition of hierarchical self-attention.
#include <memory>

#include "attend/exact/hsa_options.h"
#include "attend/tensor/operator.h"

namespace attend {

// Over the balanced tree, or over that of input `parents` [nodes] i32 where it is given.
std::unique_ptr<Operator> make_hsa_reference(const HsaOptions& options);

}  // namespace attend
