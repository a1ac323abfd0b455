#pragma once
// The definition of attention with kernelised distances (see attend/exact/kerple.h) in double precision.
#include <memory>

#include "attend/exact/kerple_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_kerple_reference(const KerpleOptions& options);

}  // namespace attend
