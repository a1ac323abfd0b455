#pragma once
#include "attend/exact/cope.h"
#include "exact/problem.h"

namespace attend::exact {

// Throws Error(kArgument).
Problem check_cope(const Qkv& in, const View& embeddings, const CopeOptions& options, const AttnOut& out);

}  // namespace attend::exact
