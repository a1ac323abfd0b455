#pragma once
// The naive double-precision definition of sigmoid attention.
#include <memory>

#include "attend/exact/sigmoid_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_sigmoid_reference(const SigmoidOptions& options);

}  // namespace attend
