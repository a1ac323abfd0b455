#pragma once
// For mechanisms that take queries, keys and values as arrays and nothing else.
#include <string_view>
#include <utility>

#include "attend/exact/softmax.h"
#include "attend/tensor/error.h"

namespace attend::exact {

// Throws Error(kArgument) where something else of `in` is given.
inline void require_plain(const Qkv& in, std::string_view op) {
  const std::pair<std::string_view, bool> others[] = {{"keys", !in.keys.empty()},
                                                      {"kv_lens", in.kv_lens.data != nullptr},
                                                      {"q_positions", in.q_positions.data != nullptr},
                                                      {"bias", in.bias.data != nullptr},
                                                      {"sink_logits", in.sink_logits.data != nullptr},
                                                      {"documents", in.documents.data != nullptr}};
  for (const auto& [name, given] : others)
    if (given) throw Error(ErrorKind::kArgument, op, name, "given", "must be absent");
}

}  // namespace attend::exact
