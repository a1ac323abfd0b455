#pragma once
// The definition of relative attention (see attend/exact/relative.h) in double precision.
#include <memory>

#include "attend/exact/relative_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_relative_reference(const RelativeOptions& options);

}  // namespace attend
