#pragma once
// The definition of attention with bucketed distances (see attend/exact/t5_bias.h) in double precision.
#include <memory>

#include "attend/exact/t5_bias_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_t5_bias_reference(const T5BiasOptions& options);

}  // namespace attend
