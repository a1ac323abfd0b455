#pragma once
// The naive double-precision definition of probabilistic attention.
#include <memory>

#include "attend/exact/probabilistic_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_probabilistic_reference(const ProbabilisticOptions& options);

}  // namespace attend
