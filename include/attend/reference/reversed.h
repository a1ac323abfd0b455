#pragma once
// The naive double-precision definition of reversed attention.
#include <memory>

#include "attend/exact/reversed_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_reversed_reference(const ReversedOptions& options);

}  // namespace attend
