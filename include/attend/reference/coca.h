#pragma once
// The definition of collinear constrained attention (see attend/exact/coca.h) in double precision.
#include <memory>

#include "attend/exact/coca_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_coca_reference(const CocaOptions& options);

}  // namespace attend
