#pragma once
// The definition of attention with contextual positions (see attend/exact/cope.h) in double precision.
#include <memory>

#include "attend/exact/cope_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_cope_reference(const CopeOptions& options);

}  // namespace attend
