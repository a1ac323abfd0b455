#pragma once
// The naive double-precision definition of Cog attention.
#include <memory>

#include "attend/exact/cog_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_cog_reference(const CogOptions& options);

}  // namespace attend
