#pragma once
// The naive double-precision definition of doubly stochastic attention: Sinkhorn's iterations on the matrix itself.
#include <memory>

#include "attend/exact/sinkhorn_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_sinkhorn_reference(const SinkhornOptions& options);

}  // namespace attend
