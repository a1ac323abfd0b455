#pragma once
// What mechanisms without a softmax share: how many keys a query sees under causality and lengths.
#include <string_view>

#include "attend/tensor/error.h"
#include "exact/problem.h"

namespace attend::exact {

// Throws Error(kArgument) where `in` has what only a softmax, or a count of keys by position, can't do with.
inline void require_countable(const Qkv& in, std::string_view op) {
  if (in.sink_logits.data) throw Error(ErrorKind::kArgument, op, "sink_logits", "given", "must be absent");
  if (in.documents.data) throw Error(ErrorKind::kArgument, op, "documents", "given", "must be absent");
  if (!in.keys.empty()) throw Error(ErrorKind::kArgument, op, "keys", "given", "must be absent");
}

// Keys that the query at `position` sees, at least 1.
struct VisibleCount {
  const int64_t* lengths;
  bool causal;

  [[gnu::always_inline]] int32_t operator()(int batch, int32_t position) const {
    const int32_t length = static_cast<int32_t>(lengths[batch]);
    const int32_t seen = causal && position + 1 < length ? position + 1 : length;
    return seen < 1 ? 1 : seen;
  }
};

}  // namespace attend::exact
