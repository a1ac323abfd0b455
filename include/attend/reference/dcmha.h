#pragma once
// The naive double-precision definition of dynamically composable multi-head attention.
#include <memory>

#include "attend/exact/dcmha_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_dcmha_reference(const DcmhaOptions& options);

}  // namespace attend
