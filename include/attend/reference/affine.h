#pragma once
// The naive double-precision definition of affine-scaled attention.
#include <memory>

#include "attend/exact/affine_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_affine_reference(const AffineOptions& options);

}  // namespace attend
