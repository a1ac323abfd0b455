#pragma once
#include "attend/exact/relative.h"
#include "exact/problem.h"

namespace attend::exact {

// Throws Error(kArgument).
Problem check_relative(const Qkv& in, const RelativeTables& tables, const RelativeOptions& options, const AttnOut& out);

}  // namespace attend::exact
