#pragma once
// The naive double-precision definition of ReLU attention.
#include <memory>

#include "attend/exact/relu_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_relu_reference(const ReluOptions& options);

}  // namespace attend
