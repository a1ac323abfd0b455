#pragma once
// The naive double-precision definition of attention over a bounded memory with queries that wait.
#include <memory>

#include "attend/exact/attendre_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_attendre_reference(const AttendreOptions& options);

}  // namespace attend
