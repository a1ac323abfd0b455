#pragma once
#include <string_view>

#include "attend/kv/codec.h"
#include "attend/lm/graph.h"
#include "attend/tensor/operator.h"

namespace attend {

// Lets the mechanism of a layer read one key in every coding of the codec, as a session would. Throws
// Error(kUnsupported), of what it can't: arguments that no model has, say, or keys that are not arrays.
void check_reads(std::string_view name, const Operator& mechanism, const AttentionLayer& layer, const Codec& codec);

}  // namespace attend
