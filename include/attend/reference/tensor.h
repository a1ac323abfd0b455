#pragma once
// The naive double-precision definition of tensor attention: three nested loops over tokens.
#include <memory>

#include "attend/exact/tensor_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_tensor_reference(const TensorOptions& options);

}  // namespace attend
