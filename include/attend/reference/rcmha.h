#pragma once
// The definition of relative convolutional attention (see attend/exact/rcmha.h) in double precision.
#include <memory>

#include "attend/exact/rcmha_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_rcmha_reference(const RcmhaOptions& options);

}  // namespace attend
