#pragma once
// The naive double-precision definition of multi-head latent attention: keys and values expanded for each head.
#include <memory>

#include "attend/exact/mla_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_mla_reference(const MlaOptions& options);

}  // namespace attend
