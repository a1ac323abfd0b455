#pragma once
// The naive double-precision definition of entmax attention: the threshold by bisection.
#include <memory>

#include "attend/exact/entmax_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_entmax_reference(const EntmaxOptions& options);

}  // namespace attend
