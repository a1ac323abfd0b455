#pragma once
// The definition of universal relative attention (see attend/exact/urpe.h) in double precision.
#include <memory>

#include "attend/exact/urpe_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_urpe_reference(const UrpeOptions& options);

}  // namespace attend
