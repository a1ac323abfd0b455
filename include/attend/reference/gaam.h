#pragma once
// The naive double-precision definition of Gaussian adaptive attention.
#include <memory>

#include "attend/exact/gaam_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_gaam_reference(const GaamOptions& options);

}  // namespace attend
