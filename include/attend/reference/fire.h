#pragma once
// The definition of attention with interpolated distances (see attend/exact/fire.h) in double precision.
#include <memory>

#include "attend/exact/fire_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_fire_reference(const FireOptions& options);

}  // namespace attend
