#pragma once
// The definition of attention with rotary position embeddings (see attend/exact/rope.h) in double precision.
#include <memory>

#include "attend/exact/rope_options.h"
#include "attend/tensor/operator.h"

namespace attend {

std::unique_ptr<Operator> make_rope_reference(const RopeAttentionOptions& options);

}  // namespace attend
