#pragma once
// The definition of dual chunk attention (see attend/exact/dca.h) in double precision.
#include <memory>

#include "attend/exact/dca_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_dca_reference(const DcaOptions& options);

}  // namespace attend
