#pragma once
// The naive double-precision definition of softplus attention with re-weighting.
#include <memory>

#include "attend/exact/lssar_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_lssar_reference(const LssarOptions& options);

}  // namespace attend
