#pragma once
// The naive double-precision definition of softmax-off-by-one attention.
#include <memory>

#include "attend/exact/softmax1_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_softmax1_reference(const Softmax1Options& options);

}  // namespace attend
