#pragma once
// The naive double-precision definition of differential attention, with groups of heads.
#include <memory>

#include "attend/exact/differential_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_differential_reference(const DifferentialOptions& options);

}  // namespace attend
