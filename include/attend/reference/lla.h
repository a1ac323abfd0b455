#pragma once
// The naive double-precision definition of local linear attention: the regression's equations, solved directly.
#include <memory>

#include "attend/exact/lla_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_lla_reference(const LlaOptions& options);

}  // namespace attend
