#pragma once
// The definition of attention over sentinel tokens (see attend/exact/sentinel.h) in double precision.
#include <memory>

#include "attend/exact/sentinel_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_sentinel_reference(const SentinelOptions& options);

}  // namespace attend
